"""The consumer that a user would write in an afternoon with aiokafka and aiohttp, for comparison.

`python -m benchmarks.plain BOOTSTRAP TOPIC URL CA`: reads events, posts each to URL/<organisation>, commits batches that are
done. It has one endpoint's trouble stop everybody, retries nothing and forgets what fails: see the README for the difference.
"""

import asyncio
import json
import ssl
import sys

import aiohttp
import uvloop
from aiokafka import AIOKafkaConsumer

CONCURRENCY = 64


def payload(event: dict) -> dict:  # type: ignore[type-arg]
    header, entity = event["header"], event["body"]["xdmEntity"]
    management = entity["_experience"]["customerJourneyManagement"]
    feedback, execution = management["messageDeliveryfeedback"], management["messageExecution"]
    return {
        "requestId": header.get("requestId"),
        "imsOrg": header["imsOrgId"],
        "sandbox": header["sandbox"],
        "channel": management["messageProfile"]["channel"]["_id"].rpartition("/")[2],
        "eventType": entity["eventType"],
        "messageExecution": {key: execution.get(key) for key in ("messageExecutionID", "messageType", "campaignID")},
        "messageDeliveryFeedback": {
            "feedbackStatus": {"value": feedback["feedbackStatus"]},
            "messageFailure": feedback.get("messageFailure"),
            "retryCount": feedback.get("retryCount"),
        },
        "identityMap": entity.get("identityMap"),
    }


async def main(bootstrap: str, topic: str, url: str, ca: str) -> None:
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        group_id=f"plain-{topic}",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    connector = aiohttp.TCPConnector(limit=CONCURRENCY, ssl=ssl.create_default_context(cafile=ca))
    try:
        async with aiohttp.ClientSession(connector=connector) as session:

            async def send(value: bytes) -> None:
                event = json.loads(value)
                body = json.dumps(payload(event))
                headers = {"content-type": "application/json"}
                async with session.post(f"{url}/{event['header']['imsOrgId']}", data=body, headers=headers) as answer:
                    await answer.read()

            while True:
                fetched = await consumer.getmany(timeout_ms=200, max_records=500)
                await asyncio.gather(*[send(one.value) for records in fetched.values() for one in records])
                if fetched:
                    await consumer.commit()
    finally:
        await consumer.stop()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:5]))
