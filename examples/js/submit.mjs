// Asks guestflow for a run on one VM and waits for its end:
//
//   node submit.mjs lab vm-42 request.json [id]
//
// request.json is the data of the request without "vm"; see schemas/requested.v1.json. The same id again is the same run, never a second one.
// Settings: NATS_URL, NATS_USER, NATS_PASSWORD, NATS_INBOX_PREFIX. Exit code 0: succeeded, 1: failed, canceled or rejected, 2: not known.
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

async function submit(nc, vcenter, vm, data, id) {
  const event = new CloudEvent({ id, source, type: `${prefix}requested.v1`, subject: vm, datacontenttype: "application/json", data: { vm, ...data } });
  const subjects = [`guestflow.events.${vcenter}.${vm}.>`, `guestflow.rejections.${vcenter}.${vm}`];
  const heard = [];
  let wake = () => {};
  const hear = (err, m) => {
    heard.push(err ?? m);
    wake();
  };
  // ask reads the last event and the last rejection of the VM: of a run that ended before, or while the connection was away.
  const ask = async () => {
    for (const subject of subjects) {
      const m = await nc.request(`$JS.API.DIRECT.GET.GUESTFLOW_EVENTS.${subject}`, "", { timeout: 5000 }).catch(() => undefined);
      if (m?.headers?.get("Nats-Sequence")) hear(undefined, m);
    }
  };
  for (const subject of subjects) nc.subscribe(subject, { callback: hear }); // before publishing: what is published earlier is not heard
  await nc.flush();
  const { seq } = await publish(jetstream(nc), `guestflow.requests.${vcenter}.${vm}`, event);
  await ask();
  (async () => {
    for await (const s of nc.status()) if (s.type === "reconnect") await ask();
  })();
  const seen = new Set();
  for (;;) {
    while (heard.length === 0) await new Promise((resolve) => (wake = resolve));
    const m = heard.shift();
    if (m instanceof Error) throw m;
    let e;
    try {
      e = read(m);
    } catch (err) {
      console.error(`not an event, on ${m.subject}: ${err.message}`);
      continue;
    }
    if (seen.has(`${e.source}\n${e.id}`)) continue;
    seen.add(`${e.source}\n${e.id}`);
    if (e.id === `rejected.${seq}`) return e;
    if (e.data.request?.source !== source || e.data.request?.id !== id) continue; // another run of this VM
    console.log(e.time, e.type.slice(prefix.length, -".v1".length));
    if (/\.run\.(succeeded|failed|canceled)\.v1$/.test(e.type)) return e;
  }
}

const [vcenter, vm, file, id = randomUUID()] = process.argv.slice(2);
if (!file) {
  console.error("usage: node submit.mjs <vcenter> <vm> <request.json> [id]");
  process.exit(2);
}
let nc;
try {
  const data = JSON.parse(await readFile(file, "utf8"));
  nc = await connect({ servers: (env.NATS_URL ?? "nats://127.0.0.1:4222").split(","), user: env.NATS_USER, pass: env.NATS_PASSWORD,
    inboxPrefix: env.NATS_INBOX_PREFIX, maxReconnectAttempts: -1 });
  const end = await submit(nc, vcenter, vm, data, id);
  console.log(end.data.status, end.data.error ? `${end.data.error.code}: ${end.data.error.message}` : "");
  process.exitCode = end.data.status === "succeeded" ? 0 : 1;
} catch (err) {
  console.error(`request ${id}: ${err.message}`);
  process.exitCode = 2;
} finally {
  await nc?.close();
}
