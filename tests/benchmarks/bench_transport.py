"""Transport of top-10 and top-64 from a byte-level BPE of 50,000 tokens to a SentencePiece BPE of 32,000, on one core."""

from profuser.alignment.token_bytes import TokenBytes
from profuser.alignment.transport import transport_rows
from profuser.alignment.vocab_projection import VocabProjection
from tests.benchmarks import published
from tests.benchmarks.measure import Row, by_turns, once
from tests.benchmarks.signals import Side, responses, signals
from tests.real_tokenizers import sentencepiece, tekken

LONG_TOKENS, MANY = 2048, 64


def long_rows(texts: list[str], side: Side) -> list[str]:
    """Returns the same answers, joined into rows of at most about `LONG_TOKENS` tokens of a side."""
    out, row, length = [], [], 0
    for text in texts:
        size = len(side.tokenizer.encode(text, add_special_tokens=False))
        if length + size > LONG_TOKENS:
            out.append("\n".join(row))
            row, length = [], 0
        row.append(text)
        length += size
    return out


def published_seconds(texts: list[str], source: Side, target: Side, projection: VocabProjection) -> tuple[float, int]:
    """Returns the seconds of the published method over these rows, and their target tokens."""
    mapping = {index: goal for index, goal in enumerate(projection.whole.tolist()) if goal >= 0}
    source_ids, target_ids = source.encode(texts), target.encode(texts)
    given = signals(source_ids)
    start = 0
    seconds = 0.0
    for row in range(len(texts)):
        ids, goals = source_ids.row(row).tolist(), target_ids.row(row).tolist()
        part = slice(start, start + len(ids))
        start += len(ids)
        pieces = source.tokenizer.convert_ids_to_tokens(ids), target.tokenizer.convert_ids_to_tokens(goals)
        tables = given.topk.ids[part].tolist(), given.topk.logprobs[part].tolist()
        seconds += once(lambda p=pieces, t=tables, g=goals: published.carry(*p, *t, mapping, g))
    return seconds, len(target_ids.values)


def run() -> list[Row]:
    source = Side(tekken(50_000), TokenBytes.from_tokenizer(tekken(50_000), 50_000))
    target = Side(sentencepiece(), TokenBytes.from_tokenizer(sentencepiece(), 32_000))
    projection = VocabProjection.build(source.tokens, target.tokens)
    short = responses()
    texts = {"short": short, "long": long_rows(short, target)}
    sizes, ways = {}, {}
    for name, rows in texts.items():
        given, goals, raw = signals(source.encode(rows)), target.encode(rows), [text.encode() for text in rows]
        sizes[name] = len(goals.values)
        ways[name] = lambda s=given, g=goals, r=raw: transport_rows(s, g, r, projection)
    # Drawn with replacement, nearly every position has candidates that merge, as with that many candidates of a real source.
    many, raw = signals(source.encode(short), MANY), [text.encode() for text in short]
    goals = target.encode(short)
    sizes["many"], ways["many"] = len(goals.values), lambda: transport_rows(many, goals, raw, projection)
    seconds = by_turns(ways)
    rate = {name: sizes[name] / seconds[name] for name in ways}
    out = []
    for name, some, reach in (("short", short[:40], ">= 250,000"), ("long", texts["long"][:1], "")):
        slow_seconds, num = published_seconds(some, source, target, projection)
        title = f"transport, {name} rows ({sizes[name] / len(texts[name]):.0f} tokens), against the published way"
        out.append(Row(title, rate[name], "tokens/s", num / slow_seconds, reach))
    out.append(Row(f"transport, K = {MANY}, against K = 10", rate["many"], "tokens/s", rate["short"], ">= 600,000"))
    title = "transport, time per token of long rows, against short rows"
    out.append(Row(title, 1e6 / rate["long"], "us/token", 1e6 / rate["short"], "<= 1.3 x"))
    whole = once(lambda: VocabProjection.build(source.tokens, target.tokens))
    nearest = once(lambda: VocabProjection.build(source.tokens, target.tokens, fallback="min_edit"))
    pieces = [target.tokenizer.convert_ids_to_tokens(index) for index in range(32_000)]
    queries = [source.tokenizer.convert_ids_to_tokens(index) for index in range(1000, 50_000, 9_800)]
    one_by_one = once(lambda: [published.nearest(query, pieces) for query in queries]) / len(queries) * 50_000
    title = "projection of 50,000 onto 32,000 tokens"
    out.append(Row(f"{title}, against min_edit one by one (extrapolated)", whole, "s", one_by_one, "< 5 s"))
    out.append(Row(f"{title} by min_edit, against the same", nearest, "s", one_by_one, "< 60 s"))
    return out
