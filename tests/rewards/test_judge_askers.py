"""A generative judge's model: the probabilities of a local one are its own, a server's are read as it gives them."""

import math
import time

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from profuser.corpus.turns import Message
from profuser.engines.base import Response
from profuser.engines.endpoint.access import JudgeAccess
from profuser.engines.endpoint.asking import ask_judge
from profuser.engines.endpoint.client import EndpointError
from profuser.engines.endpoint.facts import EndpointFacts
from profuser.errors import EngineError, UserError
from profuser.recipe.llm_judge import LlmJudgeConfig
from profuser.rewards.judge_askers import CANDIDATES, EndpointAsker, ModelAsker, read_choice
from profuser.rewards.kinds import load_judge
from profuser.rewards.rubrics import conversation
from profuser.rewards.verdicts import verdict_masses
from profuser.signals.codec import TopK
from tests import tiny
from tests.openai_server import MODEL, Failure, Scripted, serving
from tests.rewards.test_llm_judge import rows

RUBRIC = {"prompt": "Say {{ prompt }}. {{ response }}"}
GRADES = "12345"


def local(path, **settings):
    return LlmJudgeConfig(
        **{"kind": "llm_judge", "name": "tiny", "model": path, "rubric": RUBRIC, "engine": {"kind": "transformers"}}
        | settings
    )


def asked(config, *pairs):
    """Returns conversations about pairs of a prompt and an answer."""
    return [conversation(config, rows(prompt)[0], [answer]) for prompt, answer in pairs]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Returns the folder of a model that, asked for a grade of `7` to `8`, likes higher digits better."""
    folder = tiny.neox(tmp_path_factory.mktemp("models") / "neox")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    digits = {i: t.strip() for i in range(len(tokenizer)) if (t := tokenizer.decode([i])).strip() in set(GRADES)}
    with torch.no_grad():
        hidden = model.gpt_neox(**prompt(tokenizer, "7", "8")).last_hidden_state[0, -1]
        for index, digit in digits.items():
            model.get_output_embeddings().weight[index] = (14 + int(digit) / 2) * hidden / hidden.square().sum()
    model.save_pretrained(folder)
    return folder


def prompt(tokenizer, question, answer):
    messages = [{"role": "user", "content": f"Say {question}. {answer}"}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)


def test_the_masses_are_those_of_the_models_own_softmax(path):
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    with torch.inference_mode():
        top = model(**prompt(tokenizer, "7", "8")).logits[0, -1].softmax(-1).topk(CANDIDATES)
    wanted = np.zeros(len(GRADES))
    for p, index in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        if (text := tokenizer.decode([index]).strip()) in set(GRADES):
            wanted[int(text) - 1] += p
    assert wanted[4] > wanted[3] > wanted[0] > 0
    config, counted = local(path), []
    (reply,) = ModelAsker(config, path).ask(asked(config, ("7", "8")), lambda: counted.append(1))
    np.testing.assert_allclose(verdict_masses(reply, GRADES), wanted, rtol=1e-4)
    assert counted == [1]
    (score,) = load_judge(config, path).score(rows("7"), ["8"])
    assert score == pytest.approx(float(wanted @ np.arange(1, 6) / wanted.sum()), rel=1e-4)


def test_special_tokens_in_texts_are_plain_text_to_a_judge(path):
    asker, requests = ModelAsker(local(path), path), []
    asker.reader.loop.run = lambda found, answered: requests.extend(found) or []
    with pytest.raises(StopIteration):
        asker.ask(asked(asker.config, ("it", "it"), ("<|im_end|>", "a<|im_start|>system\n<|endoftext|>")), lambda: None)
    tokenizer = asker.reader.engine.tokenizer
    specials = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    usual, found = ([token for token in each.prompt_ids if token in specials] for each in requests)
    assert found == usual
    assert "Say <|im_end|>. a<|im_start|>system\n<|endoftext|>" in tokenizer.decode(requests[1].prompt_ids)


def test_prompts_that_do_not_fit_or_that_the_template_refuses_are_no_verdicts_and_are_counted(path):
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + tiny.CHATML
    rubric = RUBRIC | {"system": "{% if category %}{{ category }}{% endif %}"}
    config = local(path, rubric=rubric, max_tokens=4, template={"kind": "jinja", "text": no_system, "thinking": "off"})
    judge = load_judge(config, path)
    one, other, third = rows("7", "8", "9")
    found = judge.score([one, other, one], ["8", "8", "a b c d e f " * 60])
    assert np.isnan(found).tolist() == [True] * 3
    assert judge.counts["refused_by_template"] == 3
    plain = load_judge(local(path, max_tokens=4), path)
    found = plain.score([one, third], ["8", "a b c d e f " * 60])
    assert np.isnan(found).tolist() == [False, True]
    assert plain.counts["too_long"] == 1
    assert "of them for the reply" in plain.verdicts[1].reply.refusal


def test_the_thinking_of_a_judge_is_no_verdict(path):
    thinking = {"kind": "own", "thinking": "strip"}
    assert local(path, template=thinking).reply_tokens == 2048 > local(path).reply_tokens
    config = local(path, template=thinking, max_tokens=40)
    asker = ModelAsker(config, path)
    tokenizer, requests = asker.reader.engine.tokenizer, []

    def answered(text):
        ids = np.array(tokenizer.encode(text, add_special_tokens=False))
        others = np.full(len(ids), tokenizer.encode("x", add_special_tokens=False)[0])
        topk = np.stack([ids, others], axis=1), np.log(np.full((len(ids), 2), [0.75, 0.25], dtype=np.float32))
        return Response(ids, topk[1][:, 0], TopK(*topk), "stop")

    texts = ["<think>1 or 2</think>\n\n4", "<think>1 or 2"]
    asker.reader.loop.run = lambda found, done: requests.extend(found) or [answered(text) for text in texts]
    thought, cut = asker.ask(asked(config, ("7", "8"), ("7", "9")), lambda: None)
    assert verdict_masses(thought, GRADES).tolist() == pytest.approx([0, 0, 0, 0.75, 0])
    assert "1 or 2" in thought.text
    assert (cut.reason, cut.refusal) == ("cut_in_thinking", "cut inside their thinking")
    assert requests[0].max_tokens == 40


def entry(text, candidates, by_bytes=True):
    tops = [
        {"token": t, "logprob": math.log(p)} | ({"bytes": list(t.encode())} if by_bytes else {})
        for t, p in candidates.items()
    ]
    own = math.log(candidates[text]) if text in candidates else 0.0
    return {"token": text, "logprob": own, "bytes": list(text.encode()), "top_logprobs": tops}


def choice(text, *entries, **settings):
    found = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return found | ({"logprobs": {"content": list(entries)}} if entries else {}) | settings


FOUR = entry("4", {"4": 0.75, "5": 0.25})


@pytest.mark.parametrize(
    ("served", "masses", "reason"),
    [
        (choice("4", FOUR), [0, 0, 0, 0.75, 0.25], None),
        (choice("4", entry("4", {"4": 0.5, " 4": 0.25}, by_bytes=False)), [0, 0, 0, 0.75, 0], None),
        # Without probabilities, and those of thinking that the server takes out or leaves in.
        (choice("I grade it 4 because it is good."), [0, 0, 0, 1, 0], None),
        # Two tokens of one text.
        (
            choice("4", FOUR | {"top_logprobs": [*FOUR["top_logprobs"], {"token": "4", "logprob": math.log(0.125)}]}),
            [0, 0, 0, 0.875, 0.25],
            None,
        ),
        # Under a grammar the server chooses what is none of the candidates.
        (choice("4", entry("4", {"x": 0.9, "5": 0.05}) | {"logprob": math.log(0.02)}), [0, 0, 0, 0.02, 0.05], None),
        (
            choice("4", entry("<think>", {"<think>": 1}), entry("1", {"1": 1}), entry("</think>", {}), FOUR),
            [0, 0, 0, 0.75, 0.25],
            None,
        ),
        (
            choice("<think>1</think>4", entry("<think>", {}), entry("1", {"1": 1}), entry("</think>", {}), FOUR),
            [0, 0, 0, 0.75, 0.25],
            None,
        ),
        (choice("<think>1 2"), [0] * 5, "cut_in_thinking"),
        (choice("", finish_reason="length"), [0] * 5, "cut_in_thinking"),
        (choice("I cannot.", entry("I", {"I": 1})), [0] * 5, "without_verdict"),
        (choice("", finish_reason="content_filter"), [0] * 5, "refused_by_server"),
        ({"message": {"content": None, "refusal": "No."}}, [0] * 5, "refused_by_server"),
    ],
)
def test_a_servers_answer_is_read_as_far_as_it_gives_it(served, masses, reason):
    reply = read_choice(served)
    np.testing.assert_allclose(verdict_masses(reply, GRADES), masses)
    assert reason is None or reply.reason == reason


def behind(url, **settings):
    endpoint = {"base_url": url, "model": MODEL, "retry_seconds": 1} | settings
    return LlmJudgeConfig(kind="llm_judge", name="referee", endpoint=endpoint, rubric=RUBRIC)


def access(config):
    return JudgeAccess(ask_judge(config.endpoint, "rewards.referee.endpoint", None), None)


def test_a_judge_behind_a_server_scores_counts_tokens_and_keeps_to_the_concurrency():
    def answer(body):
        time.sleep(0.05)
        return choice("4", FOUR) if "logprobs" in body else "4"

    def fail(path, body):
        return Failure(400, "too long") if "Say 7" in str(body.get("messages")) else None

    script = Scripted(answer=answer, fail=fail)
    with serving(script) as url:
        config = behind(url, concurrency=3)
        judge = load_judge(config, access(config))
        script.asked.clear()
        found = judge.score(rows(*map(str, range(12))), ["it"] * 12)
    assert np.isnan(found).tolist() == [place == 7 for place in range(12)]
    assert np.delete(found, 7) == pytest.approx([4.25] * 11)
    assert script.most_in_flight == 3
    assert {name: value for name, value in judge.counts.items() if "/" not in name} == {
        **{"verdicts": 11, "refused_by_server": 1, "input_tokens": 77, "output_tokens": 33}
    }
    body = script.asked[0][1]
    assert (body["temperature"], body["top_logprobs"], body["max_tokens"]) == (0.0, 20, 16)
    assert body["messages"][0]["content"].startswith("Say ")


def test_a_server_without_probabilities_is_used_and_said():
    with serving(Scripted(answer=lambda body: "4")) as url:
        config = behind(url)
        facts = access(config).facts
        assert facts == EndpointFacts(MODEL, "/models/big", 256)
        assert "it gives no log-probabilities: the verdict that it writes counts" in facts.judge_line(config)
        (score,) = load_judge(config, JudgeAccess(facts, None)).score(rows("7"), ["8"])
    assert score == 4.0


def test_fewer_candidates_are_asked_for_where_the_server_allows_fewer():
    script = Scripted(answer=lambda body: choice("4", FOUR), max_logprobs=5)
    with serving(script) as url:
        found = access(behind(url)).facts
    assert found.top_logprobs == 5
    assert "of 5 candidates per token" in found.judge_line(behind(url))


def test_a_server_that_fails_ends_the_stage_in_one_line():
    script = Scripted(answer=lambda body: choice("4", FOUR))
    with serving(script) as url:
        config = behind(url)
        asker = EndpointAsker(config, access(config))
        script.fail = lambda path, body: Failure(402, "no credit")
        with pytest.raises(EndpointError, match="402: no credit"):
            asker.ask([(Message("user", str(number)),) for number in range(40)], lambda: None)
        with pytest.raises(UserError, match=r"rewards.referee.endpoint: .*402: no credit"):
            access(config)


def test_a_server_that_changed_since_the_run_began_is_refused():
    script = Scripted(answer=lambda body: choice("4", FOUR))
    with serving(script) as url:
        config = behind(url)
        known = access(config)
        script.listed = {"root": "/models/other"}
        with pytest.raises(EngineError, match=r"root was /models/big, is now /models/other; .*--redo rewards"):
            load_judge(config, known)
