"""The cloud half: scheduler, KV ledger, runners, engine, executor, gRPC service and server."""
