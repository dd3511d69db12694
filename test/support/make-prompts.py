"""Prompts of nano's own kind from a seed its training never saw: python3 make-prompts.py SEED COUNT > prompts.json."""
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "models/nano/recipe"))
sys.dont_write_bytecode = True
from corpus import Maker  # noqa: E402

maker, prompts = Maker(int(sys.argv[1])), []
while len(prompts) < int(sys.argv[2]):
    made = maker.conversation()
    messages = made["messages"]
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if messages:
        prompts.append({"messages": messages, "tools": made["tools"], "enable_thinking": made["thinking"]})
json.dump(prompts, sys.stdout, ensure_ascii=False, indent=0)
