"""Finds the ids that people mean in the history store: pasted with what is around them, or in another case."""

from dataclasses import replace

from dispatcher.contract.search_text import readings
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.history_search import HistoryQuery, HistorySearch
from dispatcher.stores.sql.records import Orgs


async def find_known_id(
    search: HistorySearch, text: str, *, orgs: Orgs, tenant: TenantKey | None = None, id_field: str | None = None
) -> str | None:
    """Returns the first of a text's `readings` that an entry has as one of its ids; None if none is known.

    `id_field`: the only column that counts. Each reading is looked up by index.

    Raises:
        StoreUnavailable: the database did not answer in time.
    """
    for reading in readings(text):
        query = HistoryQuery(tenant=tenant, any_id=reading, id_field=id_field, limit=1)
        if (await search.search(query, orgs=orgs)).items:
            return reading
    return None


async def with_known_ids(search: HistorySearch, query: HistoryQuery, *, orgs: Orgs) -> HistoryQuery:
    """Returns the query with id and campaign as the entries have them; as they were typed if they aren't known.

    Time and filters of the query don't matter, so that all its pages are about the same id.

    Raises:
        StoreUnavailable: the database did not answer in time.
    """

    async def known(text: str | None, id_field: str | None) -> str | None:
        if text is None or len(found := readings(text)) <= 1:
            return text if text is None or not found else found[0]
        return await find_known_id(search, text, orgs=orgs, tenant=query.tenant, id_field=id_field) or found[0]

    return replace(
        query,
        any_id=await known(query.any_id, query.id_field),
        campaign_id=await known(query.campaign_id, "campaign_id"),
    )
