"""Time of one policy decision: ``python benchmarks/policy.py`` prints a Markdown table.

Each row decides the same request over and over in this process, after a warm-up, as an agent does. The columns give the
median and the 5th and 95th percentile of single decisions. The request differs in its prompt by one token per call, so
that no two calls in a row have equal inputs. Rows take turns in rounds, so that a disturbance of the machine meets all.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitglm_core.plan import Codec, HeadSide, Precision, Privacy, SplitPlan
from splitglm_core.ranges import LayerRange
from splitglm_core.shapes import ModelShape
from splitglm_partitioner.arms import choices_of, enumerate_arms
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.layer_times import LayerTimes
from splitglm_partitioner.policy import choose
from splitglm_partitioner.power import PowerProfile
from splitglm_partitioner.profiles import CloudProfile, CodecTime, DeviceProfile, LinkEstimate, PrecisionProfile
from splitglm_partitioner.request import Objective, Request, Situation, Warm

ROUNDS = 20
CODECS = (Codec.FP32, Codec.BF16, Codec.INT8)


def model_of(layers: int) -> ModelShape:
    return ModelShape(
        layers=layers,
        hidden=4096,
        intermediate=13696,
        heads=32,
        kv_heads=2,
        head_dim=128,
        vocab=151552,
        max_positions=131072,
        tied_head=False,
    )


def device_of(layers: int, *, codecs_timed: bool, growth: bool) -> DeviceProfile:
    times = LayerTimes.uniform(
        layers,
        decode_s=5e-3,
        prefill_s_per_token=2e-3,
        decode_s_per_1k_context=1e-4,
        prefill_s_per_token_per_1k_context=1e-3 if growth else None,
    )
    active = PrecisionProfile(
        precision=Precision.INT4,
        times=times,
        embed_s=1e-6,
        head_s=1e-2,
        layer_weight_bytes=110_000_000,
        embedding_weight_bytes=300_000_000,
        head_weight_bytes=300_000_000,
    )
    # As measured, a cheaper payload costs more time to make: then no codec is beaten beforehand.
    seconds = dict(zip(CODECS, (1e-6, 5e-6, 2e-5), strict=True))
    return DeviceProfile(
        layers=layers,
        precision=Precision.INT4,
        precisions=(active,),
        memory_bytes_free=8 << 30,
        kv_bytes_per_token_per_layer=2048,
        max_layers=layers,
        codecs=tuple(CodecTime(codec=c, s_per_token=seconds[c]) for c in CODECS) if codecs_timed else (),
        power=PowerProfile(compute_w=5.0, radio_w=1.0, uplink_j_per_byte=2e-7, downlink_j_per_byte=1e-7),
    )


def cloud_of(layers: int, *, growth: bool) -> CloudProfile:
    per_1k_context = 1e-5 if growth else None  # by half, as measured of a small model
    return CloudProfile(
        layers=layers,
        served=LayerRange(0, layers),
        times=LayerTimes.uniform(
            layers, decode_s=5e-4, prefill_s_per_token=2e-5, prefill_s_per_token_per_1k_context=per_1k_context
        ),
        has_embedding=True,
        has_head=True,
        head_s=1e-3,
        queue_s=2e-3,
        codecs=CODECS,
    )


def drafters() -> tuple[DraftStatistics, ...]:
    """One that looks tokens up in the text and one that uses the front, each with eight lengths."""
    chances = tuple(0.7**j for j in range(1, 9))
    lookup = DraftStatistics(name="lookup", s_per_token=1e-5, survival=chances)
    early = DraftStatistics(name="early-exit", s_per_token=2e-2, survival=chances, front_layers=4, shares_front=True)
    return lookup, early


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A request, and what is known beside the profiles.

    ``growth`` is that of prefill with the context before a chunk.
    """

    request: Request
    codecs_timed: bool = False
    growth: bool = False
    drafts: tuple[DraftStatistics, ...] = ()


def cases(layers: int) -> dict[str, Case]:
    """What is asked, by name."""
    base = Request(prompt_tokens=1000, expected_new_tokens=200, codecs=CODECS)
    opened = dataclasses.replace(base, privacy=Privacy.OPEN)
    long = dataclasses.replace(opened, prompt_tokens=16000)
    finely = dataclasses.replace(long, chunk_tokens=32)
    warm = Warm(plan=SplitPlan(layers=layers, s=1, t=layers, head=HeadSide.DEVICE), cached_tokens=900)
    sizes = (32, 64, 256)
    weighed = dataclasses.replace(base, objective=Objective(latency=1.0, energy=0.1))
    everything = dataclasses.replace(opened, chunks=sizes, objective=weighed.objective, deadline_s=3600.0)
    return {
        "no-text (the default)": Case(request=base),
        "no-text, codecs timed": Case(request=base, codecs_timed=True),
        "open, all arms": Case(request=opened),
        "open, all arms, codecs timed": Case(request=opened, codecs_timed=True),
        "open, all arms, 16,000-token prompt": Case(request=long),
        "open, all arms, prefill grows": Case(request=opened, growth=True),
        "open, all arms, 16,000-token prompt, prefill grows": Case(request=long, growth=True),
        "open, all arms, 16,000-token prompt in chunks of 32, prefill grows": Case(request=finely, growth=True),
        "no-text, chat turn in an open session": Case(request=dataclasses.replace(base, warm=warm)),
        "no-text, deadline": Case(request=dataclasses.replace(base, deadline_s=3600.0)),
        "no-text, energy weighed": Case(request=weighed),
        "no-text, 4 chunk sizes": Case(request=dataclasses.replace(base, chunks=sizes)),
        "no-text, 2 drafters of 8 lengths": Case(request=base, drafts=drafters()),
        "open, all arms, 2 drafters of 8 lengths": Case(request=opened, drafts=drafters()),
        "open, all arms, drafters, chunk sizes, energy, deadline": Case(request=everything, drafts=drafters()),
    }


def measure(x: Situation, repeats: int) -> list[float]:
    """Microseconds of ``repeats`` decisions."""
    requests = [dataclasses.replace(x.request, prompt_tokens=x.request.prompt_tokens + i % 7) for i in range(repeats)]
    for warm_up in requests[:20]:
        choose(warm_up, x.model, x.device, x.link, x.cloud, x.drafts)
    out = []
    for request in requests:
        start = time.perf_counter()
        choose(request, x.model, x.device, x.link, x.cloud, x.drafts)
        out.append((time.perf_counter() - start) * 1e6)
    return out


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} logical processors" if names else platform.processor() or "unknown processor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3000)
    repeats = parser.parse_args().repeats
    link = LinkEstimate(uplink_bytes_per_s=1.25e6, downlink_bytes_per_s=5e6, rtt_s=0.05, overhead_s=5e-4)
    print(f"{processor()}; Python {platform.python_version()}, numpy {np.__version__}; {repeats} decisions per row.\n")
    rows: list[tuple[int, str, Situation]] = []
    for layers in (30, 40):
        for name, case in cases(layers).items():
            situation = Situation(
                request=case.request,
                model=model_of(layers),
                device=device_of(layers, codecs_timed=case.codecs_timed, growth=case.growth),
                link=link,
                cloud=cloud_of(layers, growth=case.growth),
                drafts=case.drafts,
            )
            rows.append((layers, name, situation))
    spent: list[list[float]] = [[] for _ in rows]
    for _ in range(ROUNDS):
        for times, (_, _, x) in zip(spent, rows, strict=True):
            times.extend(measure(x, max(1, repeats // ROUNDS)))
    print("| layers | request | plans priced | median us | p5 us | p95 us |")
    print("|---:|---|---:|---:|---:|---:|")
    for times, (layers, name, x) in zip(spent, rows, strict=True):
        count = sum(1 for plan in enumerate_arms(x).plans() for _ in choices_of(plan, x))
        low, high = np.percentile(times, [5, 95])
        print(f"| {layers} | {name} | {count} | {statistics.median(times):.0f} | {low:.0f} | {high:.0f} |")


if __name__ == "__main__":
    main()
