"""Converts jobs between the console's model and the rows of the database."""

from dataclasses import asdict
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from dispatcher.console.resend_model import RedriveModel
from dispatcher.stores.sql.jobs import INTERRUPTED, StoredJob

_PROGRESS: Final = frozenset(
    {
        "total",
        "sent",
        "already",
        "gone",
        "unreadable",
        "truncated",
        "too_large",
        "problem",
        "total_is_at_least",
        "resume",
    }
)
"""Fields of `RedriveModel` that change while the job runs."""
_MODEL: Final = TypeAdapter(RedriveModel)
_DAMAGED: Final = "its row in the webhook database can't be read"
_WHY: Final = "the console that ran it was restarted, or could not reach its database"
INTERRUPTIONS: Final = {
    "dead": f"{INTERRUPTED}: {_WHY}. Dead events that were not sent are still listed",
    "delivered": f"{INTERRUPTED}: {_WHY}. Some may have been sent that are not counted here: the next check names them",
}
"""Why a job has failed whose console has gone, and what that means for its events; by kind."""


def stored_job(job: RedriveModel) -> StoredJob:
    """Returns the job as the database has it."""
    values: dict[str, Any] = to_jsonable_python(asdict(job))
    return StoredJob(
        job.id,
        job.tenant,
        job.kind,
        job.by,
        job.state,
        {name: value for name, value in values.items() if name in _PROGRESS},
        values["query"],
    )


def job_of(stored: StoredJob) -> RedriveModel:
    """Returns the job as the console shows it. A row that was edited by hand to odd values is shown without numbers."""
    own = {
        "id": stored.id,
        "org": stored.tenant.org,
        "sandbox": stored.tenant.sandbox,
        "by": stored.by,
        "started_at": stored.started_at,
        "finished_at": stored.finished_at,
        "stopping": stored.is_stopping,
        "state": stored.state,
        "kind": stored.kind,
    }
    if stored.state == INTERRUPTED:
        own |= {"state": "failed"}
    interruption = {"problem": INTERRUPTIONS.get(stored.kind, INTERRUPTED)} if stored.state == INTERRUPTED else {}
    try:
        return _MODEL.validate_python({**stored.progress, **interruption, **own, "query": stored.selection})
    except ValidationError:
        state = "running" if stored.finished_at is None else "failed"
        return _MODEL.validate_python({**own, "total": 0, "problem": _DAMAGED, "state": state, "kind": "dead"})
