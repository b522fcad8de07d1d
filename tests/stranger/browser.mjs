// npm `ws` and Chromium (EventSource, WebSocket) as listeners on different nodes.
// Takes NODES, TOKEN and API_KEY from the environment; prints one line a fact.
import { chromium } from 'playwright-core';
import WebSocket from 'ws';
import { existsSync } from 'node:fs';

const nodes = process.env.NODES.split(',');
const token = process.env.TOKEN;
const patienceMs = 30_000;
let failed = 0;

async function check(name, test) {
  try {
    await test();
    console.log(`ok   ${name}`);
  } catch (wrong) {
    failed += 1;
    console.log(`FAIL ${name}: ${String(wrong.message ?? wrong).split('\n')[0]}`);
  }
}

async function publish(node, channel, payload) {
  const answer = await fetch(`${node}/api/realtime/publish`, {
    method: 'POST',
    headers: { 'X-API-Key': process.env.API_KEY, 'Content-Type': 'application/json' },
    body: JSON.stringify({ channel, type: 'message', payload }),
  });
  if (answer.status !== 200) throw new Error(`publish: ${answer.status} ${await answer.text()}`);
}

function late(what) {
  return new Promise((_, reject) => {
    setTimeout(() => reject(new Error(`${what}: not within ${patienceMs} ms`)), patienceMs).unref();
  });
}

// A listener by npm `ws`: `wait(test)` resolves with the first message that passes.
async function listen(node, channel, protocols, headers) {
  const query = headers ? '' : `&token=${token}`;
  const url = `${node.replace('http', 'ws')}/ws?channel=${channel}${query}`;
  const socket = new WebSocket(url, protocols, { headers });
  const heard = [];
  let look = () => {};
  socket.on('message', (data) => {
    heard.push(JSON.parse(data.toString()));
    look();
  });
  const wait = (test, what) =>
    Promise.race([
      new Promise((resolve) => {
        look = () => {
          const found = heard.find(test);
          if (found) resolve(found);
        };
        look();
      }),
      late(what),
    ]);
  await Promise.race([
    new Promise((resolve, reject) => {
      socket.on('error', reject);
      socket.on('open', resolve);
    }),
    late('open'),
  ]);
  await wait((m) => m.type === 'connect', 'the welcome');
  return { socket, heard, wait };
}

await check('npm ws hears a publish on another node', async () => {
  const { socket, wait } = await listen(nodes[0], 'room:web');
  await publish(nodes[1], 'room:web', 'for ws');
  await wait((m) => m.payload === 'for ws', 'the message');
  socket.terminate();
});

await check('a token in the subprotocol is taken and never echoed', async () => {
  const { socket } = await listen(
    nodes[0], 'room:web', ['carillon.bearer', token, 'carillon.json'], {});
  if (socket.protocol !== 'carillon.json') throw new Error(`answered ${socket.protocol}`);
  socket.terminate();
});

await check('a token in the Authorization header is taken', async () => {
  const { socket } = await listen(nodes[2], 'room:web', [], { Authorization: `Bearer ${token}` });
  socket.terminate();
});

await check('a text ping is answered by a pong frame of the same bytes', async () => {
  const { socket } = await listen(nodes[0], 'room:web');
  const pong = new Promise((resolve) => socket.on('pong', (data) => resolve(data.toString())));
  socket.ping('bell');
  if ((await Promise.race([pong, late('pong')])) !== 'bell') throw new Error('other bytes');
  socket.terminate();
});

const executablePath =
  process.env.CHROMIUM ?? ['/usr/bin/chromium', '/usr/bin/chromium-browser'].find(existsSync);
const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'], timeout: 120_000 });
try {
  // The page comes from the node itself, so that EventSource needs no CORS.
  const page = await (await browser.newContext()).newPage();
  page.setDefaultTimeout(patienceMs);
  await page.goto(`${nodes[0]}/api/realtime/openapi.json`);

  await check('EventSource in Chromium hears each publish once, in order', async () => {
    await page.evaluate((token) => {
      window.heard = [];
      window.opened = false;
      const url = `/api/realtime/events?channel=room:es&token=${token}`;
      window.source = new EventSource(url);
      window.source.addEventListener('connection', () => { window.opened = true; });
      window.source.addEventListener('message', (event) => {
        window.heard.push({ data: event.data, id: event.lastEventId });
      });
    }, token);
    await page.waitForFunction(() => window.opened);
    for (let n = 0; n < 20; n += 1) await publish(nodes[n % nodes.length], 'room:es', { n });
    await page.waitForFunction(() => window.heard.length >= 20);
    const heard = await page.evaluate(() => window.heard);
    const order = heard.map((event) => JSON.parse(event.data).n);
    if (order.join() !== [...Array(20).keys()].join()) throw new Error(`heard ${order}`);
    if (heard.some((event) => !event.id)) throw new Error('an event without an id');
  });

  await check('WebSocket in Chromium sends and others hear it', async () => {
    const { socket, wait } = await listen(nodes[2], 'room:bw');
    await page.evaluate((token) => {
      const url = `ws://${location.host}/ws?channel=room:bw&token=${token}`;
      window.socket = new WebSocket(url);
      window.socket.onopen = () => window.socket.send(
        JSON.stringify({ type: 'message', channel: 'room:bw', payload: 'from a page' }));
    }, token);
    const heard = await wait((m) => m.payload === 'from a page', 'the message');
    if (heard.user_id !== 'web') throw new Error(`user_id ${heard.user_id}`);
    socket.terminate();
  });
} finally {
  await browser.close();
}
process.exit(failed ? 1 : 0);
