"""Small scenes and strategies of one plan for tests of the simulated worlds."""

from __future__ import annotations

from dataclasses import replace

from splitglm_core.plan import Codec, HeadSide, Precision, Privacy, SplitPlan
from splitglm_core.ranges import LayerRange
from splitglm_core.shapes import ModelShape
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.layer_times import LayerTimes
from splitglm_partitioner.link_estimator import Probing
from splitglm_partitioner.observations import Observation
from splitglm_partitioner.power import PowerProfile
from splitglm_partitioner.profiles import CloudProfile, CodecTime, DeviceProfile, PrecisionProfile
from splitglm_sims.strategies.strategy import Task
from splitglm_sims.traces import RateTrace
from splitglm_sims.world.scene import CloudScene, DeviceScene, Job, LinkScene, Scene

LAYERS = 12
MODEL = ModelShape(
    layers=LAYERS,
    hidden=512,
    intermediate=1536,
    heads=8,
    kv_heads=2,
    head_dim=64,
    vocab=32000,
    max_positions=32768,
    tied_head=True,
)
DRAFTERS = (DraftStatistics(name="ngram", s_per_token=1e-5, survival=(0.7, 0.5, 0.35, 0.2)),)


def device_profile(
    decode_s: float = 2e-3, memory_bytes: int = 1 << 33, growth: float | None = None, **fields: object
) -> DeviceProfile:
    """``growth`` of prefill per 1000 tokens of context, in prefill seconds of an empty cache."""
    times = LayerTimes.uniform(
        LAYERS,
        decode_s=decode_s,
        prefill_s_per_token=decode_s / 3,
        decode_s_per_1k_context=decode_s / 10,
        prefill_s_per_token_per_1k_context=None if growth is None else growth * decode_s / 3,
    )
    active = PrecisionProfile(
        precision=Precision.INT8,
        times=times,
        embed_s=1e-6,
        head_s=decode_s,
        layer_weight_bytes=3_000_000,
        embedding_weight_bytes=16_000_000,
        head_weight_bytes=0,
    )
    return DeviceProfile(
        layers=LAYERS,
        precision=Precision.INT8,
        precisions=(active,),
        memory_bytes_free=memory_bytes,
        kv_bytes_per_token_per_layer=1024,
        max_layers=LAYERS,
        codecs=tuple(CodecTime(codec=codec, s_per_token=3e-6) for codec in Codec),
        seal_s_per_byte=1e-9,
        seal_s_per_record=5e-6,
        power=PowerProfile(compute_w=4.0, radio_w=0.8, uplink_j_per_byte=1e-7, downlink_j_per_byte=5e-8),
        **fields,  # type: ignore[arg-type]
    )


def cloud_profile(decode_s: float = 2e-4, price: float | None = 1e-6, growth: float | None = None) -> CloudProfile:
    """``growth`` as of ``device_profile``."""
    return CloudProfile(
        layers=LAYERS,
        served=LayerRange(0, LAYERS),
        times=LayerTimes.uniform(
            LAYERS,
            decode_s=decode_s,
            prefill_s_per_token=decode_s / 20,
            decode_s_per_1k_context=decode_s / 10,
            prefill_s_per_token_per_1k_context=None if growth is None else growth * decode_s / 20,
        ),
        has_embedding=True,
        has_head=True,
        head_s=decode_s,
        queue_s=0.0,
        codecs=tuple(Codec),
        price_per_layer_token=price,
    )


DEVICE, CLOUD = device_profile(), cloud_profile()


def link_scene(up: float = 1.25e6, down: float = 5e6, rtt_s: float = 0.04, **fields: object) -> LinkScene:
    return LinkScene(
        up=RateTrace.constant(up),
        down=RateTrace.constant(down),
        rtt_s=rtt_s,
        **({"window_bytes": None} | fields),  # type: ignore[arg-type]
    )


def jobs(count: int = 4, prompt: int = 200, new: int = 24, every_s: float = 20.0, **fields: object) -> tuple[Job, ...]:
    base = Job(
        at_s=0.0, prompt_tokens=prompt, new_tokens=new, max_new_tokens=new + 40, genre="chat", conversation=0,
        **({"privacy": Privacy.OPEN} | fields),  # type: ignore[arg-type]
    )  # fmt: skip
    return tuple(replace(base, at_s=every_s * i, conversation=i) for i in range(count))


def scene(**fields: object) -> Scene:
    plain: dict[str, object] = {
        "model": MODEL,
        "device": DeviceScene(profile=DEVICE),
        "link": link_scene(),
        "cloud": CloudScene(profile=CLOUD),
        "jobs": jobs(),
        "drafts": {"chat": DRAFTERS},
    }
    return Scene(**(plain | fields))  # type: ignore[arg-type]


def split(s: int = 2, **fields: object) -> SplitPlan:
    return SplitPlan(layers=LAYERS, s=s, t=LAYERS, head=HeadSide.CLOUD, **fields)  # type: ignore[arg-type]


def ushape(s: int = 2, t: int = LAYERS, **fields: object) -> SplitPlan:
    return SplitPlan(layers=LAYERS, s=s, t=t, head=HeadSide.DEVICE, **fields)  # type: ignore[arg-type]


DEVICE_ONLY = SplitPlan.device_only(LAYERS)
CLOUD_ONLY = SplitPlan.cloud_only(LAYERS)


class OnePlan:
    """Always the same plan; keeps what it was told."""

    clairvoyant = False

    def __init__(self, plan: SplitPlan, probe: Probing = Probing.NONE) -> None:
        self.plan, self.asks = plan, probe
        self.told: list[Observation] = []
        self.tasks: list[Task] = []

    def probe(self, task: Task) -> Probing:
        return self.asks

    def choose(self, task: Task) -> SplitPlan:
        self.tasks.append(task)
        return self.plan

    def observe(self, observation: Observation) -> None:
        self.told.append(observation)
