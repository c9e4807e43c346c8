"""LangChain's `OpenAI`: one prompt, a list of prompts in order, a stream, and its own batches."""

import os

from langchain_openai import OpenAI

llm = OpenAI(model=os.environ["MODEL"], max_tokens=8, temperature=0, max_retries=0)
PROMPTS = ["Once upon a time", "A cat", "The end", "The little dog"]

alone = [llm.invoke(prompt) for prompt in PROMPTS]
assert all(isinstance(text, str) for text in alone)

together = llm.generate(PROMPTS)
assert [generations[0].text for generations in together.generations] == alone
assert together.llm_output["token_usage"]["total_tokens"] > 0

assert llm.batch(PROMPTS) == alone
assert "".join(llm.stream(PROMPTS[0])) == alone[0]

two_each = OpenAI(model=os.environ["MODEL"], max_tokens=8, n=2, best_of=2, seed=3).generate(PROMPTS)
assert [len(generations) for generations in two_each.generations] == [2] * len(PROMPTS)
