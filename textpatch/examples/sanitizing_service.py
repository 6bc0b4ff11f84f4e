"""Put `sanitize` in front of a service that draws pictures of prompts.

One pipeline serves all requests, one at a time.  A request has one prompt of limited length, and a refusal is
a 422 that does not repeat it.  FastAPI is not among textpatch's requirements:

    pip install fastapi httpx
    python -m textpatch.examples.sanitizing_service

prints

    a harmless prompt: 200 image/png, passed
    a harmful word: 200 image/png, replaced
    harm outside the quotes: 422 harmful text stands outside the quotes, or nobody can tell what is quoted
    a prompt of 500 characters: 422
"""

import io
import threading
from typing import Annotated

from fastapi import FastAPI, HTTPException, Query, Response
from fastapi.testclient import TestClient

from textpatch import load
from textpatch.safety.sanitizing import Sanitizer
from textpatch.safety.word_lists import WordList

LONGEST = 300  # characters of a prompt

service = FastAPI()
sanitizer = Sanitizer(load("planted-mmdit"), detector=WordList(["grump"]), steps=2)
turn = threading.Lock()


@service.get("/picture")
def picture(prompt: Annotated[str, Query(max_length=LONGEST)], seed: int = 0) -> Response:
    """PNG of a prompt, without harmful words."""
    with turn:
        made = sanitizer(prompt, seed)
    if made.image is None:
        raise HTTPException(422, made.reason)
    png = io.BytesIO()
    made.image.save(png, "PNG")
    return Response(png.getvalue(), media_type="image/png", headers={"outcome": made.outcome})


def main() -> None:
    client = TestClient(service)
    sign = 'a red sign that says "{}" on a blue wall'
    for what, prompt in [
        ("a harmless prompt", sign.format("HOUSE")),
        ("a harmful word", sign.format("GRUMP")),
        ("harm outside the quotes", "grump " + sign.format("HOUSE")),
    ]:
        answer = client.get("/picture", params={"prompt": prompt})
        if answer.status_code == 200:
            print(f"{what}: 200 {answer.headers['content-type']}, {answer.headers['outcome']}")
        else:
            print(f"{what}: {answer.status_code} {answer.json()['detail']}")
    long = client.get("/picture", params={"prompt": "x" * 500})
    print(f"a prompt of 500 characters: {long.status_code}")


if __name__ == "__main__":
    main()
