"""The library for apps.

with Agent.open("smollm2-135m", cloud="127.0.0.1:7411") as agent:
    for piece in agent.generate("Hello"):
        print(piece, end="")
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from splitglm_core.criticality import Criticality
from splitglm_core.errors import InputError, LinkError, PromptTooLong
from splitglm_core.plan import Codec, Precision, Privacy
from splitglm_core.ranges import LayerRange
from splitglm_core.sampling import SamplingParams
from splitglm_edge.advice import Advice
from splitglm_edge.chat import Chat
from splitglm_edge.closing import CLOSER
from splitglm_edge.connection import CloudAddress, CloudConnection
from splitglm_edge.conversation import Conversation, Prepared
from splitglm_edge.decision_log import DecisionLog
from splitglm_edge.generation import Generation
from splitglm_edge.planning import Planner, sendable_chunks, warm_for
from splitglm_edge.predictions import Prediction, Predictions
from splitglm_edge.probe import profile_of
from splitglm_edge.prompting import Prompt, PromptEncoder
from splitglm_edge.reply import ReplyUnderWay
from splitglm_edge.stats import Meter
from splitglm_edge.timed_front import TimedFront
from splitglm_edge.timeouts import Timeouts
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.opening import Progress, open_checkpoint, open_stack
from splitglm_glm.runtime import RuntimeOptions
from splitglm_glm.stack import LayerStack
from splitglm_glm.store import ModelStore
from splitglm_glm.tokenizer import GlmTokenizer
from splitglm_partitioner.decision import Decision
from splitglm_partitioner.governor import Vitals
from splitglm_partitioner.link_estimator import Probing
from splitglm_partitioner.profiles import CloudProfile, DeviceProfile, LinkEstimate
from splitglm_partitioner.request import Fixed, Objective, Request

_SETTLE_S = 2.0
DEFAULT_CODECS = (Codec.BF16, Codec.INT8)


class Agent:
    """One model on this device, with or without a cloud. Thread-safe: several replies may run at once."""

    def __init__(
        self,
        *,
        checkpoint: Checkpoint,
        stack: LayerStack,
        profile: DeviceProfile,
        cloud: CloudAddress | None,
        context: int,
        timeouts: Timeouts | None = None,
        decision_log: DecisionLog | None = None,
    ) -> None:
        """Use ``Agent.open``; this takes the parts as they are."""
        self.checkpoint = checkpoint
        self.profile = profile
        self.context = context
        self.tokenizer = GlmTokenizer.open(checkpoint.directory)
        self._prompts = PromptEncoder(self.tokenizer, checkpoint.directory, checkpoint.config.shape.vocab)
        self._stack = stack
        self._shape = checkpoint.config.shape
        self._advice = Advice(self._shape, profile)
        self._front = TimedFront(stack, self._advice.observe)
        self._cloud: CloudConnection | None = None
        if cloud is not None:
            self._cloud = CloudConnection(cloud, checkpoint.fingerprint, self._advice, timeouts=timeouts)
        self._eos = tuple(sorted({*checkpoint.config.eos_token_ids, *self.tokenizer.eos_token_ids}))
        self._timeouts = timeouts or Timeouts()
        self._planner = Planner(self._advice, self._cloud, profile, stack.resident_weight_bytes)
        self._predictions = Predictions(self._advice, decision_log)
        self._lock = threading.Lock()
        CLOSER.start()
        # Weak: a conversation that is dropped frees itself.
        self._open: weakref.WeakSet[Conversation] = weakref.WeakSet()
        self._closed = False

    @classmethod
    def open(
        cls,
        model: str,
        *,
        cloud: str | CloudAddress | None = None,
        precision: Precision = Precision.INT8,
        threads: int = 0,
        context: int = 0,
        providers: tuple[str, ...] | None = None,
        store: ModelStore | None = None,
        progress: Progress | None = None,
        timeouts: Timeouts | None = None,
        decision_log: Path | None = None,
    ) -> Agent:
        """Open a model; build its graphs and measure this device if that was not done before. Connects to nobody yet.

        Args:
            model: name in the store or directory of a checkpoint.
            cloud: address (pinned keys only) or a ``CloudAddress``; None for the device alone.
            precision: of the layers on this device.
            threads: compute threads; 0 uses every core.
            context: most positions of a conversation; 0 is the model's limit.
            providers: execution providers in order of preference; None is the default list.
            progress: called with (part, done, all) while graphs are built.
            timeouts: how long to wait for the cloud.
            decision_log: file that gets a line for every reply: its decision, reproducible, with what was predicted
                and what was measured; sizes and times, never text.

        Raises:
            ModelNotFound, ModelInvalid, StorageFull, InputError, DeviceError.
        """
        log = None if decision_log is None else DecisionLog(decision_log)  # at once: it may not be writable
        store = store or ModelStore()
        checkpoint = open_checkpoint(model, store)
        shape = checkpoint.config.shape
        if not 0 <= context <= shape.max_positions:
            raise InputError(f"context {context} is outside [0, {shape.max_positions}]")
        options = RuntimeOptions(threads=threads)
        if providers is not None:
            options = RuntimeOptions(threads=threads, providers=providers)
        stack = open_stack(
            checkpoint,
            precision,
            layers=LayerRange(0, shape.layers),
            embedding=True,
            head=True,
            store=store,
            options=options,
            progress=progress,
        )
        where = CloudAddress(address=cloud) if isinstance(cloud, str) else cloud
        return cls(
            checkpoint=checkpoint,
            stack=stack,
            profile=profile_of(checkpoint, stack, store, options.thread_count),
            cloud=where,
            context=context or shape.max_positions,
            timeouts=timeouts,
            decision_log=log,
        )

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers in use on this device."""
        return self._stack.providers

    @property
    def resident_weight_bytes(self) -> int:
        """Bytes of weights loaded on this device."""
        return self._stack.resident_weight_bytes()

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        sampling: SamplingParams | None = None,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        raw: bool = False,
        privacy: Privacy = Privacy.NO_TEXT,
        fixed: Fixed | None = None,
        codecs: tuple[Codec, ...] = DEFAULT_CODECS,
        objective: Objective | None = None,
        deadline_s: float | None = None,
        energy_budget_j: float | None = None,
        criticality: Criticality = Criticality.CRITICAL,
        chunk_tokens: int = 128,
        chunks: tuple[int, ...] = (),
        genre: str = "",
        conversation: Conversation | None = None,
    ) -> Generation:
        """Answer a prompt. Nothing runs before the returned ``Generation`` is iterated.

        Args:
            prompt: text (one user message), messages, or token ids taken as they are.
            sampling: greedy by default; a temperature without a seed gets a random one only in the CLI, never here.
            stop: strings that end the reply; they are not part of it.
            ignore_eos: go on past end tokens.
            raw: take text as it is, without the chat template.
            privacy: what may leave this device.
            fixed: decisions that the policy must respect.
            codecs: acceptable for hidden states, best loved first.
            deadline_s: bound on the whole reply.
            energy_budget_j: bound on what the plan should take of this device, joules; one that takes over after a
                loss is held to it for what it still has to do. Needs a device whose power is stated.
            criticality: how much it matters when the cloud cannot serve all.
            chunk_tokens: prompt positions per prefill step; at most 4096 and what one record holds of hidden states
                in each of ``codecs``.
            chunks: other sizes that the policy may take instead; those beyond that bound are left out.
            genre: what kind of text this is, in the caller's own words (chat, code, summary): the length of answers
                and what drafters achieve are learnt for each apart. It stays on this device.
            conversation: one of ``new_conversation``; keeps caches between replies.

        Raises:
            InputError: an empty prompt, a prompt the tokenizer cannot express, parameters out of range.
            PromptTooLong: prompt and answer exceed the context.
        """
        meter = Meter()
        sampling = sampling or SamplingParams()
        if max_tokens < 1:
            raise InputError(f"max_tokens {max_tokens} is not positive")
        if isinstance(stop, str):
            raise InputError("stop is a list of strings, not one string", f"write stop=[{stop[:20]!r}]")
        ids = self.encode(prompt, raw=raw)
        if len(ids) >= self.context:
            raise PromptTooLong(
                f"the prompt has {len(ids)} tokens and leaves no room in a context of {self.context}",
                "shorten the prompt",
            )
        max_tokens = min(max_tokens, self.context - len(ids))
        own = conversation is None
        talk = conversation or self.new_conversation()
        fixed = fixed or Fixed()

        def prepare(done_tokens: int, left_s: float | None, *, use_cloud: bool) -> Prepared:
            most = max_tokens - done_tokens
            expected = max_tokens if ignore_eos else self._advice.expected_new_tokens(genre, max_tokens)
            request = Request(
                prompt_tokens=len(ids) + done_tokens,
                expected_new_tokens=min(most, max(1, expected - done_tokens)),
                max_new_tokens=most,
                privacy=privacy,
                deadline_s=left_s,
                energy_budget_j=energy_budget_j,
                objective=objective or Objective(),
                codecs=codecs,
                **sendable_chunks(
                    len(ids) + done_tokens, chunk_tokens, chunks, codecs=codecs, hidden=self._shape.hidden
                ),
                fixed=fixed,
                warm=warm_for(talk, ids),
            )
            return self._planner.prepare(talk, request, genre=genre, use_cloud=use_cloud)

        reply = ReplyUnderWay(
            conversation=talk,
            prepare=prepare,
            tokenizer=self.tokenizer,
            prompt=ids,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=tuple(stop),
            eos=() if ignore_eos else self._eos,
            deadline_s=deadline_s,
            criticality=criticality,
            rejoin_s=self._timeouts.rejoin_s,
            meter=meter,
            on_account=lambda account: self._predictions.ended(account, genre=genre, max_new_tokens=max_tokens),
            on_end=(lambda: self.end_conversation(talk)) if own else None,
        )
        return Generation(reply)

    def chat(self, *, system: str | None = None) -> Chat:
        """A conversation that keeps its messages and its caches: only new tokens are run and sent."""
        return Chat(self, system)

    def encode(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """The token ids of a prompt, as ``generate`` would run them.

        Raises:
            InputError: empty, or it holds bytes that this model's vocabulary cannot express.
        """
        return self._prompts.encode(prompt, raw=raw)

    def predictions(self) -> tuple[Prediction, ...]:
        """Of the newest replies, oldest first: what was predicted of each and what it took."""
        return self._predictions.kept()

    def vitals(self) -> Vitals:
        """What this machine's sensors say now."""
        return self._planner.vitals()

    def decide(self, request: Request) -> Decision:
        """What the policy would choose now; asks the link what matters for it, runs nothing.

        Raises:
            NoFeasiblePlan, and LinkError when only the cloud could serve this and it cannot be reached.
        """
        return self._planner.decide(request)[0]

    def new_conversation(self) -> Conversation:
        """Caches for one conversation at a time; pass it to ``generate``, end it with ``end_conversation``."""
        talk = Conversation(self._front, self._shape, self.context, self._timeouts)
        with self._lock:
            if self._closed:
                raise InputError("the agent is closed", "open another one")
            self._open.add(talk)
        return talk

    def end_conversation(self, conversation: Conversation) -> None:
        """Free its caches on both sides; a reply under way is closed first."""
        conversation.end()
        with self._lock:
            self._open.discard(conversation)

    def link(self) -> tuple[LinkEstimate, CloudProfile]:
        """The link as measured now, and the cloud's profile at its present load; connects if need be.

        Raises:
            InputError: no cloud is configured.
            LinkError: it cannot be reached.
        """
        if self._cloud is None:
            raise InputError("no cloud is configured", "name one with --cloud HOST:PORT")
        self._cloud.probe(Probing.ROUND_TRIP)
        cloud = self._advice.cloud()
        if cloud is None:
            raise LinkError("the cloud has not told its profile")
        return self._advice.link(), cloud

    def close(self) -> None:
        """Close every reply under way, end every conversation and the connection."""
        with self._lock:
            self._closed = True
            talks = list(self._open)
        for talk in talks:
            self.end_conversation(talk)
        # A conversation that was just dropped is still being ended: it needs the connection for its goodbye.
        CLOSER.settle(_SETTLE_S)
        if self._cloud is not None:
            self._cloud.close()

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
