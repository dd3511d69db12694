"""What the official client for Python makes of a server: one line of JSON with all it saw.

Usage: openai_client.py URL BUSY_URL, where BUSY_URL answers its first request with 429.
"""
import json
import sys

import openai
from openai import OpenAI

URL, BUSY_URL = sys.argv[1:]
CAPITAL = "What is the capital of Japan?"
STORY = "Tell me a story about a fox."
WEATHER = "How is the weather in Rome today?"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    },
}
client = OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=600)


def body(words, thinking=False, **more):
    extra = {"chat_template_kwargs": {"enable_thinking": thinking}}
    messages = [{"role": "user", "content": words}]
    return {"model": "nano", "messages": messages, "temperature": 0, "extra_body": extra, **more}


def text():
    return client.chat.completions.create(**body(CAPITAL)).choices[0].message.content


def streamed():
    whole = client.chat.completions.create(**body(STORY)).choices[0].message.content
    pieces, usage = [], None
    for chunk in client.chat.completions.create(**body(STORY, stream=True, stream_options={"include_usage": True})):
        usage = chunk.usage or usage
        pieces += [choice.delta.content for choice in chunk.choices if choice.delta.content]
    return {"pieces": len(pieces), "same": "".join(pieces) == whole, "tokens": usage.completion_tokens}


def tool(stream):
    if stream:
        with client.chat.completions.stream(**body(WEATHER, thinking=True, tools=[TOOL])) as events:
            answer = events.get_final_completion()
    else:
        answer = client.chat.completions.create(**body(WEATHER, thinking=True, tools=[TOOL]))
    called = answer.choices[0].message.tool_calls[0].function
    return {"name": called.name, "input": json.loads(called.arguments), "finish": answer.choices[0].finish_reason}


def structured():
    words = "Extract name, age and city as JSON: Hugo is 31 years old and lives in Oslo."
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": PERSON}}
    return json.loads(client.chat.completions.create(**body(words, response_format=form)).choices[0].message.content)


def error():
    try:
        client.chat.completions.create(**{**body(CAPITAL), "temperature": 7})
    except openai.BadRequestError as refused:
        return {"status": refused.status_code, "param": refused.param, "message": refused.message}


def response():
    pieces, done = [], None
    for event in client.responses.create(model="nano", input=CAPITAL, temperature=0, stream=True):
        if event.type == "response.output_text.delta":
            pieces.append(event.delta)
        if event.type == "response.completed":
            done = event.response.output_text
    return {"streamed": "".join(pieces), "done": done}


def abort():
    stream = client.chat.completions.create(**body(STORY, stream=True, max_tokens=3000))
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    stream.close()
    return True


def retried():
    patient = OpenAI(base_url=f"{BUSY_URL}/v1", api_key="none", max_retries=2, timeout=600)
    return patient.chat.completions.create(**body(CAPITAL)).choices[0].message.content


seen = {
    "version": openai.__version__,
    "models": [model.id for model in client.models.list()],
    "text": text(),
    "streamed": streamed(),
    "tool": tool(False),
    "streamed_tool": tool(True),
    "structured": structured(),
    "error": error(),
    "response": response(),
    "abort": abort(),
    "retried": retried(),
}
print(json.dumps(seen))
