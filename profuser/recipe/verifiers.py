"""The recipe sections of verifiers, which judge an answer by a rule."""

from typing import Literal

from pydantic import Field, JsonValue

from profuser.config import Pattern, execution_field
from profuser.recipe.judging import VerifierBase


class LastNumberConfig(VerifierBase):
    """A verifier: 1 if the answer and the ground truth have the same last number, else 0.

    Numbers are parsed as people write them: `1,234.50`, `-3`, `$5`, `12 %`, `6.02e23`. A comma separates groups of three digits;
    `$` and `%` are units and change nothing.
    """

    kind: Literal["last_number"]
    tolerance: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Largest difference between two numbers that count as equal."""


class ExactMatchConfig(VerifierBase):
    """A verifier: 1 if the whole answer equals the ground truth, else 0."""

    kind: Literal["exact_match"]
    ignore_whitespace: bool = True
    """Whether each run of whitespace counts as one space, and whitespace at the ends is ignored."""
    ignore_case: bool = False
    """Whether upper and lower case count as equal."""


class AnswerMatchConfig(VerifierBase):
    """A verifier: 1 if the answer and the ground truth have the same final part, else 0."""

    kind: Literal["answer_match"]
    pattern: Pattern
    """Regular expression whose first group is the final part, e.g. `#### (-?[0-9.,]+)`."""


class CallableConfig(VerifierBase):
    """A user-defined verifier: a Python function `(messages, answer, response) -> float`, higher is better.

    `messages` is the prompt as a list of `{"role": ..., "content": ...}`, `answer` a source's answer, `response` the ground truth.
    A turn that calls tools has `tool_calls` in OpenAI's form, with arguments as objects; a tool's result has the role `tool`.
    """

    kind: Literal["callable"]
    path: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
    """`package.module:function`; the module must be installed or on PYTHONPATH, on every node."""


class ChrfConfig(VerifierBase):
    """A verifier: chrF of the answer against the ground truth, 0 to 1 (sacreBLEU's, which prints it times 100).

    An F-score over character n-grams (Popovic, 2015); it needs no words, so it suits every script, and code.
    """

    kind: Literal["chrf"]
    char_order: int = Field(default=6, gt=0)
    """Longest character n-gram."""
    word_order: int = Field(default=0, ge=0)
    """Longest word n-gram; 2 is chrF++."""
    beta: int = Field(default=2, gt=0)
    """Weight of recall: above 1, leaving something out costs more than adding something."""


class RougeLConfig(VerifierBase):
    """A verifier: ROUGE-L of the answer against the ground truth, 0 to 1 (rouge-score's F-measure).

    The longest common subsequence of words (Lin, 2004). Words are runs of `a-z` and `0-9`: it does not judge a row whose ground
    truth has none, such as one in Chinese; `chrf` does.
    """

    kind: Literal["rouge_l"]
    stem: bool = False
    """Whether words are stemmed (Porter), for English."""


class MathVerifyConfig(VerifierBase):
    """A verifier: 1 if the final expressions of the answer and of the ground truth are equal, else 0 (math-verify's comparison).

    It reads LaTeX between delimiters (`\\boxed{}`, `$...$`), numbers, fractions, percentages, sets and intervals; what follows the
    last `####` of a text, if there is one. It does not judge a row whose ground truth has no expression.
    """

    kind: Literal["math_verify"]
    timeout_seconds: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Longest comparison of an answer with its ground truth; an answer that takes longer gets 0."""


class CodeTestsConfig(VerifierBase):
    """A verifier: runs the Python code of an answer against its row's tests (`corpus.fields.tests`), in a sandbox.

    The code is the last fenced block of `python` or without a language, else the whole answer; it runs once, and then each test in
    order, in one process.
    The sandbox has no network, no environment but PATH and HOME, an empty folder, and limits of time, memory, processes and file
    size. It needs Linux namespaces. The ground truth is not used; a row without tests is not judged.
    """

    kind: Literal["code_tests"]
    score: Literal["share", "all"] = "share"
    """Reward: the share of the tests that pass, or 1 if all pass and else 0."""
    timeout_seconds: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Time for an answer's code and all its tests together; the tests that are left then fail."""
    memory_mib: int = Field(default=2048, ge=64)
    """Address space of each process of an answer, in MiB."""
    num_workers: int | None = execution_field(None, gt=0)
    """Answers that run concurrently; by default one on each CPU of the actor, which reserves an equal share of its node's free ones
    unless `pool.num_cpus` is set."""
    allow_unsandboxed: bool = execution_field(False)
    """Whether the code of answers may run where namespaces are not allowed (some containers): with limits only, so that it reads,
    writes and sends what the user may. Where they are allowed it runs in the sandbox all the same."""

    @property
    def row_fields(self) -> tuple[str, ...]:
        """Fields of the corpus's records that it needs, by their keys in `corpus.fields`."""
        return ("tests",)


class JsonSchemaConfig(VerifierBase):
    """A verifier: 1 if the answer is JSON that a JSON schema accepts, else 0 (the package jsonschema's validation).

    The JSON is the whole answer, or its last fenced block of `json` or without a language. Formats (`format: date`) are not
    checked, and references must lead into the schema itself. The ground truth is not used; a row without a schema is not judged.
    """

    kind: Literal["json_schema"]
    json_schema: dict[str, JsonValue] | str | None = None
    """The schema, or the path of a JSON or YAML file with it; by default each row's own (`corpus.fields.json_schema`)."""

    @property
    def row_fields(self) -> tuple[str, ...]:
        """Fields of the corpus's records that it needs, by their keys in `corpus.fields`."""
        return ("json_schema",) if self.json_schema is None else ()


VerifierConfig = (
    LastNumberConfig
    | ExactMatchConfig
    | AnswerMatchConfig
    | CallableConfig
    | ChrfConfig
    | RougeLConfig
    | MathVerifyConfig
    | CodeTestsConfig
    | JsonSchemaConfig
)
