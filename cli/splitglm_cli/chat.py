"""``splitglm chat``: a conversation at the terminal, or from lines of standard input."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final

from splitglm_cli import options
from splitglm_core.errors import InputError, SplitGlmError
from splitglm_core.plan import Precision, Privacy

if TYPE_CHECKING:
    from splitglm_cli.reply_options import ReplyOptions
    from splitglm_edge import Agent, Generation, Stats
    from splitglm_edge.chat import Chat

_HELP: Final = """\
/help   this list
/reset  forget the conversation
/stats  the account of the last reply
/quit   end (so does Ctrl-D)
Ctrl-C  cancels the reply under way"""


def chat(
    model: options.Model,
    system: options.System = None,
    max_tokens: options.MaxTokens = 512,
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
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Talk with MODEL. A turn sends and computes only what is new. /help lists the commands."""
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
    from splitglm_cli.opening import CloudOptions, open_agent

    where = CloudOptions(address=cloud, key=cloud_key, trust_first_use=trust_first_use, psk_file=psk_file).resolve()
    with open_agent(
        model, where, precision=precision, threads=threads, context=context, quiet=quiet, decision_log=decision_log
    ) as agent:
        if not quiet:
            _say(f"{model}; /help lists commands, Ctrl-D ends")
        _Talk(agent, wanted, system, quiet=quiet).loop()


class _Talk:
    def __init__(self, agent: Agent, wanted: ReplyOptions, system: str | None, *, quiet: bool) -> None:
        self._agent = agent
        self._system = system
        self._quiet = quiet
        self._seed = wanted.seed
        self._options = wanted.for_agent(agent)
        self._chat: Chat = agent.chat(system=system)
        self._stats: Stats | None = None

    def loop(self) -> None:
        """Until /quit or the end of input."""
        for line in _lines():
            match line.strip():
                case "":
                    pass
                case "/help":
                    _say(_HELP)
                case "/reset":
                    self._chat.close()
                    self._chat = self._agent.chat(system=self._system)
                    _say("the conversation is forgotten")
                case "/stats":
                    self._show_stats()
                case "/quit" | "/exit":
                    return
                case command if command.startswith("/"):
                    _say(f"there is no command {command.split()[0]}; /help lists them")
                case text:
                    self._answer(text)

    def _answer(self, text: str) -> None:
        """One turn. A request that cannot be served ends the turn, not the chat."""
        from splitglm_cli.terminal import printable

        try:
            reply = self._chat.say(text, **self._options)
            with closing(reply), _cancelling(reply.generation):
                try:
                    for piece in reply:
                        sys.stdout.write(printable(piece))
                        sys.stdout.flush()
                except KeyboardInterrupt:
                    reply.discard()
                    raise
        except KeyboardInterrupt:
            print(flush=True)
            _say("cancelled; nothing of it is kept")
            return
        except InputError as error:
            _say(error.one_line())
            return
        except SplitGlmError:
            print(flush=True)
            raise
        print(flush=True)
        self._stats = reply.generation.stats
        if self._stats is not None and self._stats.finish == "cancelled":
            _say("cancelled")
        elif self._stats is not None and not self._quiet:
            for fallback in self._stats.fallbacks:
                _say(fallback)

    def _show_stats(self) -> None:
        from splitglm_cli.account import account_in_words

        _say("no reply yet" if self._stats is None else account_in_words(self._stats, seed=self._seed))


def _lines() -> Iterator[str]:
    """Lines from the terminal, with editing and history where there is one, or from a pipe."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    try:
        import readline  # noqa: F401  # input() uses it once it is imported
    except ImportError:
        pass
    while True:
        try:
            yield input("> ")
        except EOFError:
            print(flush=True)
            return
        except KeyboardInterrupt:
            print(flush=True)
            _say("Ctrl-D or /quit ends the chat")


@contextmanager
def _cancelling(reply: Generation) -> Iterator[None]:
    """Ctrl-C ends the reply after the token at hand, keeping the caches; before the first token, or twice: at once."""
    asked = False

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked or not reply.token_ids:
            raise KeyboardInterrupt
        asked = True
        reply.cancel()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
