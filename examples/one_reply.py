"""A reply from a split model, its text streamed and its account printed.

On one machine:   splitglm cloud serve smollm2-135m
                  python examples/one_reply.py 127.0.0.1:7411 "Why is the sky blue?"

Without an address everything runs on this device.
"""

import sys

from splitglm_core.errors import SplitGlmError, status_of
from splitglm_edge import Agent, CloudAddress


def main() -> int:
    *address, prompt = sys.argv[1:] or ["Why is the sky blue?"]
    # First use pins the cloud's key for good; compare it with what the server prints if the network is not yours.
    cloud = CloudAddress(address=address[0], trust_on_first_use=True) if address else None
    try:
        with Agent.open("smollm2-135m", cloud=cloud) as agent:
            reply = agent.generate(prompt, max_tokens=80)
            for piece in reply:
                print(piece, end="", flush=True)
    except SplitGlmError as error:
        print(error.one_line(), file=sys.stderr)
        return status_of(error).exit_code
    if reply.stats is not None:
        print(f"\n\n{reply.stats.plan}\n{reply.stats.tokens_per_s:.1f} tokens/s, {reply.stats.bytes_up} bytes up")
    return 0


if __name__ == "__main__":
    sys.exit(main())
