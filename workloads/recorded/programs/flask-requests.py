"""A small Flask application: each request allocates forms, sessions, JSON and a page,
nearly all short-lived, and the notes of users are kept."""

import sys

from flask import Flask, jsonify, render_template_string, request, session

import replay

PAGE = "<h1>{{ number }}</h1>{% for note in notes %}<p>{{ note }}</p>{% endfor %}"
application = Flask("notes", static_folder=None)
application.secret_key = "only for a recording"
notes: dict[int, list[str]] = {}


@application.get("/notes/<int:number>")
def show(number):
    session["seen"] = session.get("seen", 0) + 1
    return render_template_string(PAGE, number=number, notes=notes.get(number, ()))


@application.post("/notes/<int:number>")
def leave(number):
    notes.setdefault(number, []).append(request.form["text"])
    return jsonify(number=number, notes=notes[number])


with replay.record(sys.argv[1], clean=True, force=True):
    replay.mark("warm-up")
    client = application.test_client()
    client.get("/notes/0")
    replay.mark("work")
    for turn in range(18):
        client.post(f"/notes/{turn % 5}", data={"text": f"note {turn} " * (turn % 9)})
        client.get(f"/notes/{turn % 6}")
        client.get("/nowhere")
