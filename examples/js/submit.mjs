// Sends a request for one VM and waits for the end of its run; asks for the state of a VM; cancels a run:
//
//   node submit.mjs submit lab vm-42 request.json [id]
//   node submit.mjs ask lab vm-42
//   node submit.mjs cancel lab vm-42 id
//
// request.json is the data of the request without "vm"; see schemas/requested.v1.json.
// Sending the same id again is the same run, never a second one.
// The permissions of the publisher's role are enough (docs/operate/nats-permissions.md):
// it subscribes in core NATS, and believes an end only when the stream holds it.
// Settings: NATS_URL, NATS_USER, NATS_PASSWORD, NATS_INBOX_PREFIX.
// Exit codes: 0 succeeded, 1 failed, 2 rejected, 3 canceled, 4 unknown;
// of a cancel: 0 canceled, 1 the run ended in another way, 2 rejected.
import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { randomUUID } from "node:crypto";
import { connect, headers } from "@nats-io/transport-node";
import { jetstream, JetStreamApiError } from "@nats-io/jetstream";
import { CloudEvent, HTTP } from "cloudevents";

const env = process.env;
const source = "/examples/js";
const prefix = "io.guestflow.customization.";

// read takes an event in either form: GUESTFLOW_EVENT_MODE says which one guestflow writes.
function read(m) {
  const h = Object.fromEntries((m.headers?.keys() ?? []).map((k) => [k.toLowerCase(), m.headers.get(k)]));
  if (h["ce-specversion"]) {
    for (const k of Object.keys(h)) if (k.startsWith("ce-")) h[k] = decodeURIComponent(h[k]);
    h["content-type"] ??= h["ce-datacontenttype"];
  }
  return HTTP.toEvent({ headers: h, body: m.string() });
}

// publish waits for the stream's answer. A VM's queue may be full for some milliseconds right after a run has ended.
async function publish(js, subject, event) {
  const h = headers();
  h.set("Content-Type", "application/cloudevents+json");
  for (const end = Date.now() + 1000; ; await sleep(50)) {
    try {
      return await js.publish(subject, JSON.stringify(event), { headers: h, timeout: 5000 });
    } catch (err) {
      const full = err instanceof JetStreamApiError && err.code === 10077;
      if (!full || Date.now() > end) throw err;
    }
  }
}

function event(kind, id, vm, data) {
  return new CloudEvent({ id, source, type: `${prefix}${kind}.v1`, subject: vm, datacontenttype: "application/json", data });
}

// last is the newest event on a subject; its data is the whole run. Nothing where there is none.
async function last(nc, subject) {
  const m = await nc.request(`$JS.API.DIRECT.GET.GUESTFLOW_EVENTS.${subject}`, "", { timeout: 5000 });
  return m.headers?.get("Nats-Sequence") ? read(m) : undefined;
}

// follow publishes an event, shows what becomes of the run of the request id, and returns its end.
async function follow(nc, vcenter, vm, id, subject, message) {
  const subjects = [`guestflow.events.${vcenter}.${vm}.>`, `guestflow.rejections.${vcenter}.${vm}`];
  const heard = [];
  let wake = () => {};
  const hear = (err, m) => {
    try {
      heard.push(err ?? read(m));
    } catch (why) {
      console.error(`not an event, on ${m.subject}: ${why.message}`);
    }
    wake();
  };
  for (const s of subjects) nc.subscribe(s, { callback: hear }); // before publishing: what is published earlier is not heard
  await nc.flush();
  const { seq } = await publish(jetstream(nc), subject, message);
  const ask = async () => {
    for (const s of subjects) {
      const e = await last(nc, s).catch(() => undefined);
      if (e) heard.push(e);
    }
    wake();
  };
  await ask(); // it may have ended before
  (async () => {
    for await (const s of nc.status()) if (s.type === "reconnect") await ask();
  })();
  const seen = new Set();
  for (;;) {
    while (heard.length === 0) await new Promise((resolve) => (wake = resolve));
    const e = heard.shift();
    if (e instanceof Error) throw e;
    const name = `${e.source}\n${e.id}`;
    if (seen.has(name)) continue;
    if (e.id === `rejected.${seq}`) return e;
    if (e.data.request?.source !== source || e.data.request?.id !== id) continue; // another run of this VM
    if (/\.run\.(succeeded|failed|canceled)\.v1$/.test(e.type)) {
      // Core NATS also hands out what the stream then refuses: the end is what the stream holds.
      const kind = e.type.slice(prefix.length, -".v1".length);
      for (let tries = 0; tries < 20; tries++, await sleep(100)) {
        const stored = await last(nc, `guestflow.events.${vcenter}.${vm}.${kind}`);
        if (stored?.id !== e.id) continue;
        console.log(kind);
        return e;
      }
      continue; // refused: its owner has lost the VM, and another's events follow
    }
    seen.add(name);
    console.log(e.type.slice(prefix.length, -".v1".length));
  }
}

const [command, vcenter, vm, what, id = randomUUID()] = process.argv.slice(2);
if (!vm || !(command === "ask" || ((command === "submit" || command === "cancel") && what))) {
  console.error("usage: submit VCENTER VM FILE [ID] | ask VCENTER VM | cancel VCENTER VM ID");
  process.exit(4);
}
let nc;
try {
  nc = await connect({ servers: (env.NATS_URL ?? "nats://127.0.0.1:4222").split(","), user: env.NATS_USER, pass: env.NATS_PASSWORD,
    inboxPrefix: env.NATS_INBOX_PREFIX, maxReconnectAttempts: -1 });
  let end;
  if (command === "ask") {
    end = await last(nc, `guestflow.events.${vcenter}.${vm}.>`);
    if (!end) throw new Error(`${vm} has no event`);
  } else if (command === "cancel") {
    const request = { source, id: what };
    end = await follow(nc, vcenter, vm, what, `guestflow.cancels.${vcenter}.${vm}`, event("cancel.requested", id, vm, { vm, request, reason: "no longer wanted" }));
  } else {
    const data = { ...JSON.parse(await readFile(what, "utf8")), vm };
    end = await follow(nc, vcenter, vm, id, `guestflow.requests.${vcenter}.${vm}`, event("requested", id, vm, data));
  }
  console.log(end.data.status, end.data.error?.code ?? "");
  process.exitCode = { running: 0, succeeded: command === "cancel" ? 1 : 0, failed: 1, rejected: 2, canceled: command === "submit" ? 3 : 0 }[end.data.status];
  if (command === "ask") process.exitCode = 0;
} catch (err) {
  console.error(`${command} ${vm}: ${err.message}`);
  process.exitCode = 4;
} finally {
  await nc?.close();
}
