"""The dispatcher's consumer groups: their names."""

from dispatcher.config.settings import Settings


def retry_group(group_id: str) -> str:
    """Returns `<group_id>.retry`, which reads the retry topics."""
    return f"{group_id}.retry"


def held_group(group_id: str) -> str:
    """Returns `<group_id>.held`, which reads the topic of held events."""
    return f"{group_id}.held"


def history_group(group_id: str) -> str:
    """Returns `<group_id>.history`, in which history workers read the history topic."""
    return f"{group_id}.history"


def delivering_groups(settings: Settings) -> tuple[str, ...]:
    """Returns the groups without which events are not delivered."""
    group_id = settings.kafka.group_id
    return group_id, retry_group(group_id), held_group(group_id)


def group_names(settings: Settings) -> tuple[str, ...]:
    """Returns every group that a process with these settings joins."""
    history = (history_group(settings.kafka.group_id),) if settings.history.has_store else ()
    return *delivering_groups(settings), *history
