"""The contract between the halves: schema, frames, codecs, limits and the sans-IO session machine."""
