"""Open-loop load on a cloud: sessions by a schedule, over the product's own protocol, with no model on the client."""
