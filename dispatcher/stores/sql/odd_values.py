"""Values of another type than their column's, in rows that were edited by hand: SQLite accepts any. Pure."""

from sqlalchemy import Integer, RowMapping, String

from dispatcher.errors import Problem
from dispatcher.stores.sql.schema import NO_TIME, Json, UtcTime, webhooks


def text_of(value: object) -> str:
    """Returns the text that SQLite may hold as bytes, if it was typed by hand."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def number_of(value: object) -> int:
    """Returns a whole number; 0 if the value is none."""
    return value if isinstance(value, int) else 0


def problems_of(row: RowMapping) -> list[Problem]:
    """Returns the columns of a webhook's row that have a value of another type, and what to do."""
    columns = (webhooks.c[name] for name in row if name in webhooks.c)
    wrong = {column.name: kind for column in columns if (kind := _kind_missed(column.type, row[column.name]))}
    return [Problem(f"its column {name} isn't {kind}: correct the row") for name, kind in wrong.items()]


def _kind_missed(kind: object, value: object) -> str:
    match kind:
        case UtcTime():
            return "a time" if value == NO_TIME else ""
        case Json():
            return "" if value else "a JSON object"
        case Integer():
            return "" if isinstance(value, int) else "a whole number"
        case String():
            return "" if isinstance(value, str) else "text"
    return ""
