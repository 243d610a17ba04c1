"""Sends a request for one VM and waits for the end of its run; asks for the state of a VM; cancels a run:

    python3 submit.py submit lab vm-42 request.json [id]
    python3 submit.py ask lab vm-42
    python3 submit.py cancel lab vm-42 id

request.json is the data of the request without "vm"; see schemas/requested.v1.json. NATS_URL says where NATS is.
Exit codes: 0 succeeded, 1 failed, 2 rejected, 3 canceled, 4 unknown;
of a cancel: 0 canceled, 1 the run ended in another way, 2 rejected.
It needs nats-py and cloudevents: see requirements.txt.
"""

import asyncio
import json
import os
import sys
import uuid

import nats
from cloudevents.core.bindings.http import HTTPMessage, from_http_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent
from nats.js.api import ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError

SOURCE = "/examples/python"
PREFIX = "io.guestflow.customization."
QUEUE_FULL = 10077  # err_code of the JetStream API


def read(msg):
    """Takes an event in either form: GUESTFLOW_EVENT_MODE says which one guestflow writes."""
    headers = {k.lower(): v for k, v in (msg.headers or {}).items()}
    if "ce-datacontenttype" in headers:  # in HTTP that is the content type
        headers["content-type"] = headers.pop("ce-datacontenttype")
    return from_http_event(HTTPMessage(headers, msg.data))


async def publish(js, subject, kind, id, vm, data):
    """Returns once the stream has stored the event. A VM's queue may be full for some milliseconds right after a run has ended."""
    attributes = {"type": f"{PREFIX}{kind}.v1", "source": SOURCE, "id": id, "subject": vm, "specversion": "1.0", "datacontenttype": "application/json"}
    message = to_structured_event(CloudEvent(attributes, data))
    for left in range(20, -1, -1):
        try:
            return await js.publish(subject, message.body, timeout=5, headers={"Content-Type": "application/cloudevents+json"})
        except APIError as err:
            if err.err_code != QUEUE_FULL or left == 0:
                raise
            await asyncio.sleep(0.05)


async def wait(js, vcenter, vm, id, seq):
    """Reads the VM's journal from its beginning, so it does not matter what happened before. seq is what the publish answered."""
    subjects = [f"guestflow.events.{vcenter}.{vm}.>", f"guestflow.rejections.{vcenter}.{vm}"]
    config = ConsumerConfig(filter_subjects=subjects, deliver_policy=DeliverPolicy.ALL)
    journal = await js.subscribe("", stream="GUESTFLOW_EVENTS", ordered_consumer=True, config=config)
    async for msg in journal.messages:
        event = read(msg)
        kind = event.get_type().removeprefix(PREFIX).removesuffix(".v1")
        if kind == "rejected":
            if event.get_id() == f"rejected.{seq}":
                return event.get_data()
            continue
        if event.get_data()["request"] != {"source": SOURCE, "id": id}:
            continue  # another run of this VM
        print(kind, flush=True)
        if kind in ("run.succeeded", "run.failed", "run.canceled"):
            return event.get_data()


async def ask(nc, vcenter, vm):
    """Reads the VM's last event: its data is the whole run."""
    msg = await nc.request(f"$JS.API.DIRECT.GET.GUESTFLOW_EVENTS.guestflow.events.{vcenter}.{vm}.>", timeout=5)
    if "Nats-Sequence" not in (msg.headers or {}):
        raise LookupError(f"{vm} has no event")
    return read(msg).get_data()


async def cancel(js, vcenter, vm, id):
    """Asks for the end of a request's run, which tells that end; what comes too late is rejected."""
    data = {"vm": vm, "request": {"source": SOURCE, "id": id}, "reason": "no longer wanted"}
    return await publish(js, f"guestflow.cancels.{vcenter}.{vm}", "cancel.requested", str(uuid.uuid4()), vm, data)


async def main(args):
    if len(args) < 3 or args[0] not in ("submit", "ask", "cancel") or (args[0] != "ask" and len(args) < 4):
        raise ValueError("usage: submit VCENTER VM FILE [ID] | ask VCENTER VM | cancel VCENTER VM ID")
    command, vcenter, vm = args[:3]
    nc = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222").split(","), max_reconnect_attempts=-1)
    js = nc.jetstream()
    try:
        if command == "ask":
            end = await ask(nc, vcenter, vm)
        elif command == "cancel":
            id = args[3]
            ack = await cancel(js, vcenter, vm, id)
            end = await wait(js, vcenter, vm, id, ack.seq)
        else:
            id = args[4] if len(args) > 4 else str(uuid.uuid4())
            with open(args[3], encoding="utf-8") as file:
                data = {"vm": vm, **json.load(file)}
            ack = await publish(js, f"guestflow.requests.{vcenter}.{vm}", "requested", id, vm, data)
            end = await wait(js, vcenter, vm, id, ack.seq)
    finally:
        await nc.close()
    print(end["status"], end.get("error", {}).get("code", ""))
    codes = {"succeeded": 0, "failed": 1, "rejected": 2, "canceled": 3}
    if command == "cancel":
        codes.update(canceled=0, succeeded=1)
    return 0 if command == "ask" else codes[end["status"]]


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main(sys.argv[1:])))
    except Exception as err:
        print(f"{type(err).__name__}: {err}", file=sys.stderr)
        sys.exit(4)
