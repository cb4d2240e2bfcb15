"""Every cut of a model at once: what the policy would expect of it on three links, without running anything.

python examples/compare_cuts.py smollm2-135m
"""

import sys

from splitglm_core.plan import Arm, Codec, Privacy
from splitglm_core.ranges import LayerRange
from splitglm_edge import Agent
from splitglm_partitioner.layer_times import LayerTimes
from splitglm_partitioner.policy import choose
from splitglm_partitioner.profiles import CloudProfile, LinkEstimate
from splitglm_partitioner.request import Fixed, Request


def main() -> None:
    with Agent.open(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m") as agent:
        shape, device = agent.checkpoint.config.shape, agent.profile
    # A cloud ten times as fast per layer as this device, for the sake of the example.
    mine = device.active.times
    cloud = CloudProfile(
        layers=shape.layers,
        served=LayerRange(0, shape.layers),
        times=LayerTimes.uniform(
            shape.layers,
            decode_s=mine.decode_s[0] / 10,
            prefill_s_per_token=mine.prefill[-1].s_per_token[0] / 10,
            chunk_tokens=mine.prefill[-1].chunk_tokens,
        ),
        has_embedding=True,
        has_head=True,
        head_s=device.active.head_s / 10,
        queue_s=0.0,
        codecs=tuple(Codec),
    )
    print("link              cut of a U-shape       TTFT ms   tok/s")
    for name, rtt_s, mbit in (("home fibre", 0.01, 50), ("LTE", 0.06, 10), ("far and thin", 0.15, 1)):
        link = LinkEstimate(
            uplink_bytes_per_s=mbit * 125e3, downlink_bytes_per_s=mbit * 125e3, rtt_s=rtt_s, overhead_s=0.0006
        )
        for s in range(shape.layers // 6, shape.layers, shape.layers // 6):
            request = Request(
                prompt_tokens=300,
                expected_new_tokens=100,
                privacy=Privacy.NO_TEXT,
                fixed=Fixed(arm=Arm.USHAPE, s=s, t=shape.layers),
            )
            cost = choose(request, shape, device, link, cloud).breakdown
            cut = f"[0, {s}) | [{s}, {shape.layers})"
            print(f"{name:16}  {cut:20} {1e3 * cost.ttft_s:9.0f} {1 / cost.per_token_s:7.1f}")


if __name__ == "__main__":
    main()
