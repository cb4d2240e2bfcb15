"""Schema version 1 and the stubs that protoc wrote from it (``make proto``)."""
