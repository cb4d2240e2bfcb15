"""``splitglm run``: answer one prompt."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from typing import Annotated, Final

import typer

from splitglm_cli import options
from splitglm_core.errors import InputError, InternalError
from splitglm_core.plan import Precision, Privacy

_LONGEST_INPUT_BYTES: Final = 64 << 20


def run(
    model: options.Model,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Without it, or for -: read from standard input.")
    ] = None,
    system: options.System = None,
    raw: Annotated[bool, typer.Option("--raw", help="Take the prompt as it is, without the chat template.")] = False,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    frequency_penalty: options.FrequencyPenalty = 0.0,
    presence_penalty: options.PresencePenalty = 0.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    ignore_eos: options.IgnoreEos = False,
    privacy: options.PrivacyOption = Privacy.NO_TEXT,
    split: options.Split = None,
    codec: options.CodecOption = None,
    precision: options.PrecisionOption = Precision.INT8,
    threads: options.Threads = 0,
    context: options.Context = 0,
    deadline: options.Deadline = None,
    energy_budget: options.EnergyBudget = None,
    criticality: options.CriticalityOption = "critical",
    objective: options.ObjectiveOption = None,
    chunk: options.Chunk = None,
    decision_log: options.DecisionLogOption = None,
    cloud: options.Cloud = None,
    cloud_key: options.CloudKey = None,
    trust_first_use: options.TrustFirstUse = False,
    psk_file: options.PskFile = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Answer PROMPT with MODEL. The text streams to standard output, an account of it follows on standard error."""
    from splitglm_cli.reply_options import ReplyOptions

    wanted = ReplyOptions.make(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        seed=seed,
        max_tokens=max_tokens,
        stop=stop,
        ignore_eos=ignore_eos,
        privacy=privacy,
        split=split,
        codec=codec,
        deadline=deadline,
        energy_budget=energy_budget,
        criticality=criticality,
        chunk=chunk,
        objective=objective,
    )
    if raw and system is not None:
        raise InputError("--raw sends the prompt as it is, so there is no place for --system", "leave one of them out")
    from splitglm_cli.opening import CloudOptions, open_agent

    where = CloudOptions(address=cloud, key=cloud_key, trust_first_use=trust_first_use, psk_file=psk_file).resolve()
    text = _from_stdin(quiet) if prompt is None or prompt == "-" else prompt
    if not text.strip() and not raw:
        raise InputError("the prompt is empty", "say something, for example: splitglm run MODEL 'Hello'")
    from splitglm_cli.account import account_as_json, account_in_words
    from splitglm_cli.terminal import printable
    from splitglm_glm.chat import Message

    with open_agent(
        model, where, precision=precision, threads=threads, context=context, quiet=quiet, decision_log=decision_log
    ) as agent:
        asked: str | list[Message] = text
        if system is not None:
            asked = [Message(role="system", content=system), Message(role="user", content=text)]
        with closing(agent.generate(asked, raw=raw, **wanted.for_agent(agent))) as reply:
            for piece in reply:
                if not as_json:
                    sys.stdout.write(printable(piece))
                    sys.stdout.flush()
        providers = agent.providers
    if reply.stats is None:
        raise InternalError("a reply ended without its account")
    if as_json:
        document = account_as_json(
            reply.stats, model=model, text=reply.text, token_ids=reply.token_ids, seed=wanted.seed, providers=providers
        )
        print(json.dumps(document, ensure_ascii=False), flush=True)
        return
    print(flush=True)
    if not quiet:
        print("\n" + account_in_words(reply.stats, seed=wanted.seed), file=sys.stderr, flush=True)


def _from_stdin(quiet: bool) -> str:
    if sys.stdin.isatty() and not quiet:
        print("reading the prompt from standard input; Ctrl-D ends it", file=sys.stderr, flush=True)
    data = sys.stdin.buffer.read(_LONGEST_INPUT_BYTES + 1)
    if len(data) > _LONGEST_INPUT_BYTES:
        raise InputError(f"standard input holds more than {_LONGEST_INPUT_BYTES:,} bytes", "shorten the prompt")
    try:
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"standard input is not UTF-8 (byte {error.start})", "convert it, for example with iconv"
        ) from None
