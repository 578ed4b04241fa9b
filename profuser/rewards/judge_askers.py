"""Puts a generative judge's questions to its model: in an engine of the run, or behind an endpoint."""

import asyncio
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from profuser.corpus.rendering import Refusal
from profuser.corpus.template import render_prompts
from profuser.corpus.thinking import FAMILIES, without_thinking
from profuser.engines.answers import UNREADABLE
from profuser.engines.base import GREEDY, Request, Response
from profuser.engines.crash_guard import EngineDeadError
from profuser.engines.endpoint.access import JudgeAccess
from profuser.engines.endpoint.asking import ask_judge
from profuser.engines.endpoint.client import EndpointClient, RefusedRequestError
from profuser.engines.endpoint.requests import chat_body, choice_of, openai_messages, refusal_of, text_of, usage_of
from profuser.engines.endpoint.tokens import logprob
from profuser.engines.loading import ReadModel
from profuser.engines.loop import EngineLoop
from profuser.errors import EngineError
from profuser.recipe.llm_judge import LlmJudgeConfig
from profuser.rewards.llm_judge import Conversation
from profuser.rewards.verdicts import NONE, Reply, Token

WORD = re.compile(r"\S+\s*")
CANDIDATES = 20
"""Candidates per token that are read: as many as OpenAI's interface gives."""
CUT, LONG, UNKNOWN = "cut_in_thinking", "too_long", "with_unknown_tokens"
TEMPLATE, SERVER = "refused_by_template", "refused_by_server"
"""Reasons why a reply is no verdict, with `NONE`."""


class ModelAsker:
    """A judge's model in an engine of the run.

    Args:
        config: the judge.
        path: folder, URI or Hub name of its model.

    Raises:
        EngineError: the model cannot be loaded.
    """

    def __init__(self, config: LlmJudgeConfig, path: str):
        self.config = config
        self.reader = ReadModel(path, config, config.template).load()
        self.loop: EngineLoop | None = self.reader.loop

    def ask(self, conversations: Sequence[Conversation], answered: Callable[[], None]) -> list[Reply]:
        """See `Asker`. A prompt that the template refuses, or that leaves no room for the reply, has none."""
        prompts = render_prompts(self.reader.engine.tokenizer, conversations, self.config.template)
        asked = Request([], CANDIDATES, max_tokens=self.config.reply_tokens, stop=self.config.template.stop)
        found, requests = [self._fault(prompt) for prompt in prompts], []
        for prompt, fault in zip(prompts, found, strict=True):
            if fault or isinstance(prompt, Refusal):
                answered()
            else:
                requests.append(replace(asked, prompt_ids=prompt))
        try:
            responses = iter(self.reader.loop.run(requests, lambda index: answered()))
        except EngineDeadError as error:
            raise EngineError(
                f"{self.config.section}: its engine failed: {error}; run again: finished shards are kept"
            ) from error
        return [fault or self._read(next(responses)) for fault in found]

    def _fault(self, prompt: list[int] | Refusal) -> Reply | None:
        """Returns why a prompt has no reply; None if it can be asked."""
        engine = self.reader.engine
        if isinstance(prompt, Refusal):
            return Reply("", refusal=prompt.reason, reason=TEMPLATE)
        if len(prompt) + self.config.reply_tokens > engine.max_model_len:
            room = f"{engine.max_model_len:,}, {self.config.reply_tokens:,} of them for the reply"
            return Reply("", refusal=f"the prompt is {len(prompt):,} tokens; the judge takes {room}", reason=LONG)
        if max(prompt) >= engine.vocab_size:
            return Reply("", refusal=f"it contains the token {max(prompt)}, beyond the model's logits", reason=UNKNOWN)
        return None

    def _read(self, response: Response) -> Reply:
        answer, tokens = self.reader.answers.read(response), self.reader.tokens
        text = tokens.spell(response.ids).decode(errors="replace")
        if answer.text is None:
            reason = CUT if answer.unreadable == "thinking" else NONE
            return Reply(text, refusal=UNREADABLE[answer.unreadable or "blank"], reason=reason)
        kept = answer.response
        columns = (each.tolist() for each in (kept.ids, kept.logprobs, kept.topk.ids, kept.topk.logprobs))
        return Reply(text, [self._token(*step) for step in zip(*columns, strict=True)])

    def _token(self, own: int, value: float, ids: Sequence[int], logprobs: Sequence[float]) -> Token:
        candidates = {own: value} | dict(zip(ids, logprobs, strict=True))
        return Token.of(self._text(own), [(self._text(index), each) for index, each in candidates.items()])

    def _text(self, index: int) -> str:
        return (self.reader.tokens[index] or b"").decode(errors="replace")


class EndpointAsker:
    """A judge's model behind a server.

    Args:
        config: the judge.
        access: what its server gave when the run began.

    Raises:
        EngineError: the server gives something else now.
        UserError: it cannot be used.
    """

    def __init__(self, config: LlmJudgeConfig, access: JudgeAccess):
        assert config.endpoint is not None
        self.config, self.endpoint = config, config.endpoint
        self.facts = ask_judge(self.endpoint, f"{config.section}.endpoint", access.key)
        access.check(self.endpoint, f"{config.section}.endpoint", self.facts)
        self.client = EndpointClient(self.endpoint, access.key)
        self.loop: EngineLoop | None = None
        self._events = asyncio.new_event_loop()

    def ask(self, conversations: Sequence[Conversation], answered: Callable[[], None]) -> list[Reply]:
        """See `Asker`; raises EndpointError if the server cannot be used."""
        return self._events.run_until_complete(self._ask_all(conversations, answered))

    async def _ask_all(self, conversations: Sequence[Conversation], answered: Callable[[], None]) -> list[Reply]:
        free = asyncio.Semaphore(self.endpoint.concurrency)

        async def one(messages: Conversation) -> Reply:
            async with free:
                reply = await self._ask_one(messages)
            answered()
            return reply

        tasks = [asyncio.ensure_future(one(messages)) for messages in conversations]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _ask_one(self, messages: Conversation) -> Reply:
        limit, facts = self.config.reply_tokens, self.facts
        body = chat_body(self.endpoint, facts, openai_messages(messages), GREEDY, limit, 0, (), facts.top_logprobs)
        # Counted as four bytes a token: the server's tokenizer is not known.
        num_tokens = sum(len(message.content.encode()) for message in messages) // 4 + limit
        try:
            content = await self.client.send("/chat/completions", body, num_tokens)
            choice = choice_of(content)
        except RefusedRequestError as refusal:
            return Reply("", refusal=f"the server refuses it: {refusal.reason}", reason=SERVER)
        return replace(read_choice(choice), usage=usage_of(content))


def read_choice(choice: dict[str, Any]) -> Reply:
    """Reads a server's answer, with its candidates if it gives them; thinking in it or beside it is left out."""
    if refusal := refusal_of(choice):
        return Reply("", refusal=refusal, reason=SERVER)
    content = text_of(choice)
    verdict = without_thinking(content, inside=True).strip()
    thinks = any(content.lstrip().startswith(family.open) for family in FAMILIES) and verdict == content.strip()
    if thinks or (not verdict and choice.get("finish_reason") == "length"):
        return Reply(content, refusal="cut inside its thinking", reason=CUT)
    entries = (choice.get("logprobs") or {}).get("content") or []
    pieces = [_piece(entry) for entry in entries]
    start = b"".join(pieces).rfind(verdict.encode())
    if not entries or start < 0:
        return Reply(content, [Token(word, {}) for word in WORD.findall(verdict)])
    ends = itertools.accumulate(map(len, pieces))
    return Reply(content, [_token(entry) for entry, end in zip(entries, ends, strict=True) if end > start])


def _token(entry: dict[str, Any]) -> Token:
    named = [entry, *(entry.get("top_logprobs") or ())]
    own, *tops = [(_piece(each).decode(errors="replace"), logprob(each)) for each in named]
    # A server may choose a token that is none of the most probable ones, e.g. under a grammar.
    return Token.of(own[0], tops if own in tops else [*tops, own])


def _piece(entry: dict[str, Any]) -> bytes:
    """Returns the bytes of a token; many servers only write its text."""
    spelt = entry.get("bytes")
    return str(entry["token"]).encode(errors="replace") if spelt is None else bytes(spelt)
