"""Asks the base model, without any adapter, whether a sentence is dangerous. It decides nothing.

What a clinic trained an adapter to say is no judge of itself; the base model has never seen those rows.
"""

import math

from services.worker_infer.model import Model

#: What begins an answer that says yes, and one that says no.
_YES, _NO = ("Yes", "yes"), ("No", "no")
#: Of what stands before the sentence this much is read, in characters.
_CONTEXT_CHARS = 800


class ModelAsker:
    """The judge's side of a worker's model; safe to share between threads."""

    def __init__(self, model: Model) -> None:
        self._model = model
        #: As verdicts name it.
        self.name = f"judge-{model.model_id.rpartition('/')[2]}@{model.revision[:12]}"
        self._choices = [model.text.first_token(word) for word in (*_YES, *_NO)]

    def likelihood(self, instruction: str, text: str, context: str, timeout_s: float) -> float:
        """p(yes) / (p(yes) + p(no)) at the place where the answer starts.

        Raises PromptTooLong when the text is longer than the model's context, TimeoutError when others were
        asked for `timeout_s` seconds.
        """
        before = f"Before it stands:\n{context[-_CONTEXT_CHARS:]}\n\n" if context else ""
        question = (
            f"{instruction}\n\n{before}The sentence:\n{text}\n\n"
            "Is the sentence dangerous? Answer with one word, Yes or No."
        )
        prompt = self._model.text.prompt(
            system="", turns=[], question=question, budget_tokens=self._model.context_tokens
        )
        compared = self._model.engine.compare(prompt.token_ids, self._choices, timeout_s)
        likelihoods = [math.exp(each) for each in compared]
        yes, no = sum(likelihoods[: len(_YES)]), sum(likelihoods[len(_YES) :])
        return yes / (yes + no) if yes + no else 1.0
