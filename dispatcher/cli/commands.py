"""The program with all its commands."""

import dispatcher.demo
from dispatcher.cli import (
    console,
    explain,
    history,
    receive,
    redrive,
    run,
    sample,
    schemas,
    tokens,
    topics,
    trace,
    webhooks,
)
from dispatcher.cli.program import program

app = program(
    run, console, history, topics, redrive, explain, trace, webhooks, tokens, schemas, sample, receive, dispatcher.demo
)
