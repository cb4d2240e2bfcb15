"""Options that several verbs share. A flag wins over its ``SPLITGLM_*`` variable, and that over the default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from splitglm_cli.invocation import Invocation
from splitglm_core.criticality import Criticality
from splitglm_core.plan import Codec, Precision, Privacy

CRITICALITIES: Final = tuple(criticality.name.lower().replace("_", "-") for criticality in Criticality)


def _switch_debug(context: typer.Context, value: bool) -> bool:
    if value and isinstance(context.obj, Invocation):
        context.obj.debug = True
    return value


Model = Annotated[str, typer.Argument(metavar="MODEL", help="Name in the store, or directory of a checkpoint.")]
Debug = Annotated[bool, typer.Option("--debug", callback=_switch_debug, help="Show tracebacks.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no account on standard error.")]

Cloud = Annotated[
    str | None, typer.Option("--cloud", metavar="ADDRESS", envvar="SPLITGLM_CLOUD", help="HOST:PORT of the cloud.")
]
CloudKey = Annotated[
    str | None,
    typer.Option("--cloud-key", metavar="KEY", envvar="SPLITGLM_CLOUD_KEY", help="Accept exactly this key (sglm1...)."),
]
TrustFirstUse = Annotated[
    bool,
    typer.Option("--trust-first-use", envvar="SPLITGLM_TRUST_FIRST_USE", help="Accept and pin an unknown cloud's key."),
]
PskFile = Annotated[
    Path | None,
    typer.Option("--psk-file", metavar="FILE", envvar="SPLITGLM_PSK_FILE", help="Pairing code (`keys pair`)."),
]
Threads = Annotated[
    int, typer.Option("--threads", min=0, max=1024, envvar="SPLITGLM_THREADS", help="Compute threads; 0: every core.")
]
PrecisionOption = Annotated[
    Precision, typer.Option("--precision", envvar="SPLITGLM_PRECISION", help="Weights of the layers on this device.")
]
Context = Annotated[
    int, typer.Option("--context", min=0, envvar="SPLITGLM_CONTEXT", help="Most positions; 0: the model's limit.")
]
PrivacyOption = Annotated[
    Privacy,
    typer.Option(
        "--privacy",
        envvar="SPLITGLM_PRIVACY",
        help="What may be sent. open: token ids. no-prompt: no prompt ids. no-text: neither prompt nor answer ids. "
        "local: nothing. Hidden states are not text, but their reader may reconstruct some (SECURITY.md).",
    ),
]
CodecOption = Annotated[
    Codec | None,
    typer.Option(
        "--codec",
        envvar="SPLITGLM_CODEC",
        help="How hidden states travel; fp32 is exact. Default: bf16 or int8, as is faster.",
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        "--split",
        metavar="S[:T]",
        help="Fix the cut; N is the number of layers. S: layers [S, N) in the cloud, with the head there too where "
        "--privacy lets answer ids come down (open, no-prompt), else here. S:T: U-shape, layers [S, T) in the cloud, "
        "the head here. 0: all in the cloud (needs --privacy open). N: all here. Default: the policy chooses.",
    ),
]
Temperature = Annotated[float, typer.Option("--temperature", help="0 always takes the most probable token.")]
TopP = Annotated[float, typer.Option("--top-p", help="Smallest set of tokens with at least this probability.")]
TopK = Annotated[int, typer.Option("--top-k", help="The K most probable tokens; 0: all.")]
RepetitionPenalty = Annotated[float, typer.Option("--repetition-penalty", help="Divides logits of generated tokens.")]
FrequencyPenalty = Annotated[float, typer.Option("--frequency-penalty", help="Subtracted per earlier occurrence.")]
PresencePenalty = Annotated[float, typer.Option("--presence-penalty", help="Subtracted once a token has occurred.")]
Seed = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="Same seed, same answer. Without one a random seed is used and reported."),
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Longest answer.")]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="End the answer before this text. Repeatable.")
]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on past the model's end tokens.")]
System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System message.")]
Deadline = Annotated[
    float | None, typer.Option("--deadline", metavar="SECONDS", min=0.0, help="Bound on the whole answer.")
]
EnergyBudget = Annotated[
    float | None,
    typer.Option(
        "--energy-budget",
        metavar="JOULES",
        min=0.0,
        help="Bound on what the answer takes of this device; needs a stated power, see profile.",
    ),
]
CriticalityOption = Annotated[
    str,
    typer.Option(
        "--criticality",
        envvar="SPLITGLM_CRITICALITY",
        metavar="|".join(CRITICALITIES),
        help="How much the answer matters when the cloud cannot serve all; the last is refused first.",
    ),
]
Chunk = Annotated[
    int | None,
    typer.Option(
        "--chunk",
        min=1,
        help="Prompt positions per prefill step. Default: the policy's of 32 to 256.",
    ),
]
ObjectiveOption = Annotated[
    str | None,
    typer.Option(
        "--objective",
        envvar="SPLITGLM_OBJECTIVE",
        metavar="NAME=WEIGHT,...",
        help="What the policy minimises: latency (seconds in all), ttft (seconds to the first token), energy (joules "
        "here; needs a stated power, see profile), cloud_cost (the cloud's price). Default: latency=1.",
    ),
]
DecisionLogOption = Annotated[
    Path | None,
    typer.Option(
        "--decision-log",
        metavar="FILE",
        envvar="SPLITGLM_DECISION_LOG",
        help="Append a line per answer: its decision, predicted and measured times; never text. For `replay`.",
    ),
]
