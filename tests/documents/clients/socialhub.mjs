// A client as a reader of the SocialHub document would write it: a token in the URL, a queue while disconnected,
// acknowledgements, reconnection with exponential backoff, and long polling when WebSocket fails. Times are a hundredth.
import WebSocket from 'ws';
import { check, equal, finish, node, rest, tokens, until } from './checks.mjs';

const backoffsMs = [1, 2, 4, 8, 16, 30].map((seconds) => seconds * 10);
const attemptsMax = 10;

class WebSocketService {
  status = 'disconnected';
  statuses = [];
  handlers = new Map();
  queue = [];
  acks = new Map();
  channels = new Set();
  attempts = 0;
  lastPollId = 0;
  sent = 0;

  constructor(hosts) {
    this.hosts = hosts; // the balancer: each attempt may meet another node
  }

  connect(token, userId) {
    Object.assign(this, { token, userId, wanted: true });
    this.open();
  }

  set(status) {
    this.status = status;
    this.statuses.push(status);
  }

  open() {
    const host = this.hosts(this.attempts).replace('http', 'ws');
    this.socket = new WebSocket(`${host}/ws?token=${this.token}`);
    this.socket.on('open', () => {
      this.attempts = 0;
      this.set('connected');
      for (const channel of this.channels) this.transmit({ type: 'subscribe', payload: { channel } });
      this.queue.splice(0).forEach((message) => this.transmit(message));
    });
    this.socket.on('message', (data) => this.dispatch(JSON.parse(data.toString())));
    this.socket.on('error', () => {});
    this.socket.on('close', () => this.closed());
  }

  closed() {
    if (!this.wanted) return this.set('disconnected');
    if (this.attempts >= attemptsMax) return this.startPolling();
    this.set('reconnecting');
    const delay = backoffsMs[Math.min(this.attempts, backoffsMs.length - 1)];
    this.attempts += 1;
    setTimeout(() => this.wanted && this.open(), delay);
  }

  async startPolling() {
    this.set('polling');
    while (this.wanted && this.status === 'polling') {
      const query = new URLSearchParams({
        user_id: this.userId, last_poll_id: this.lastPollId, timeout: 5, channels: [...this.channels],
      });
      const answer = await fetch(`${this.pollHost()}/api/v1/realtime/poll?${query}`, {
        headers: { Authorization: `Bearer ${this.token}` },
      });
      const body = await answer.json();
      if (!answer.ok) throw new Error(`poll: ${JSON.stringify(body)}`);
      this.lastPollId = body.last_poll_id;
      this.polls = (this.polls ?? 0) + 1;
      body.events.forEach((event) => this.dispatch(event));
    }
  }

  pollHost() {
    this.pollCount = (this.pollCount ?? 0) + 1;
    return node(this.pollCount);
  }

  dispatch(message) {
    if (message.ack_id && this.acks.has(message.ack_id)) {
      const { resolve, reject, timer } = this.acks.get(message.ack_id);
      if (message.type === 'ack') resolve(message.payload);
      else if (message.type === 'error') reject(new Error(message.payload.code));
      else return;
      clearTimeout(timer);
      this.acks.delete(message.ack_id);
      return;
    }
    (this.handlers.get(message.type) ?? []).forEach((handler) => handler(message));
  }

  on(type, handler) {
    this.handlers.set(type, [...(this.handlers.get(type) ?? []), handler]);
  }

  transmit(message) {
    this.sent += 1;
    const id = `msg_${Date.now()}_${this.sent}`;
    this.socket.send(JSON.stringify({ id, timestamp: new Date().toISOString(), ...message }));
  }

  send(message) {
    if (this.status === 'connected') this.transmit(message);
    else this.queue.push(message);
  }

  sendWithAck(message, timeoutMs) {
    const ackId = `ack_${Math.random().toString(36).slice(2)}`;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error('no acknowledgement')), timeoutMs);
      this.acks.set(ackId, { resolve, reject, timer });
      this.send({ ...message, ack_id: ackId });
    });
  }

  subscribe(channel) {
    this.channels.add(channel);
    if (this.status === 'connected') this.transmit({ type: 'subscribe', payload: { channel } });
  }

  disconnect() {
    this.wanted = false;
    this.socket.close();
  }
}

const conversation = `conversation:conv_${process.pid}`;
const alice = new WebSocketService((attempt) => node(attempt));
const bob = new WebSocketService((attempt) => node(attempt + 1));
const heard = { alice: [], bob: [] };
const record = (service, list, ...types) =>
  types.forEach((type) => service.on(type, (message) => list.push(message)));
record(alice, heard.alice, 'connect', 'notification', 'message', 'typing_start', 'read_receipt', 'subscribed');
record(bob, heard.bob, 'connect', 'notification', 'message', 'typing_start', 'read_receipt', 'subscribed');
const of = (list, type) => list.filter((message) => message.type === type);

await check('socialhub client: connects, and subscribes', async () => {
  alice.connect(tokens.alice, 'alice');
  bob.connect(tokens.bob, 'bob');
  alice.subscribe(conversation);
  bob.subscribe(conversation);
  await until('both connect', () => of(heard.alice, 'connect').length && of(heard.bob, 'connect').length);
  equal(of(heard.alice, 'connect')[0].payload.user_id, 'alice', 'user');
  await until('both subscribe', () => of(heard.alice, 'subscribed').length && of(heard.bob, 'subscribed').length);
});

await check('socialhub client: a notification arrives', async () => {
  await rest(node(2), 'POST', '/users/alice/messages', {
    type: 'notification', payload: { id: 'notif_1', type: 'like', message: 'liked', read: false } });
  await until('the notification', () => of(heard.alice, 'notification').length === 1);
  equal(of(heard.alice, 'notification')[0].payload.id, 'notif_1', 'id');
});

await check('socialhub client: sendWithAck, typing and receipts reach the other', async () => {
  const ack = await alice.sendWithAck(
    { type: 'message', channel: conversation, payload: { content: 'Hello' } }, 5000);
  equal(ack.status, 'success', 'status');
  alice.send({ type: 'typing_start', channel: conversation,
    payload: { conversation_id: conversation.slice(13), user_id: 'alice', username: 'alice' } });
  await until('typing', () => of(heard.bob, 'typing_start').length === 1);
  equal(of(heard.bob, 'typing_start')[0].payload.is_typing, true, 'is_typing');
  bob.send({ type: 'read_receipt', channel: conversation,
    payload: { conversation_id: conversation.slice(13), message_ids: [ack.data.id] } });
  await until('the receipt', () => of(heard.alice, 'read_receipt').length === 1);
  equal(of(heard.alice, 'read_receipt')[0].payload.user_id, 'bob', 'reader');
  equal(of(heard.bob, 'message').map((message) => message.payload.content), ['Hello'], 'messages');
  equal(of(heard.alice, 'typing_start').length, 0, 'own typing');
});

await check('socialhub client: a refused message rejects', async () => {
  const refused = await alice.sendWithAck({ type: 'message', channel: 'nowhere', payload: {} }, 5000)
    .catch((error) => error.message);
  equal(refused, 'CHANNEL_NOT_FOUND', 'code');
});

await check('socialhub client: cut off, it comes back on another node and sends what was queued', async () => {
  const before = alice.statuses.length;
  alice.socket.terminate();
  await until('reconnecting', () => alice.statuses.includes('reconnecting', before));
  alice.send({ type: 'message', channel: conversation, payload: { content: 'queued' } });
  await until('connected again', () => alice.status === 'connected');
  await until('the queued message', () => of(heard.bob, 'message').length === 2);
  equal(of(heard.bob, 'message')[1].payload.content, 'queued', 'content');
});

await check('socialhub client: without WebSocket it falls back to long polling after ten attempts', async () => {
  const carol = new WebSocketService(() => 'http://127.0.0.1:9');
  const list = [];
  record(carol, list, 'notification', 'message');
  carol.subscribe(conversation);
  carol.connect(tokens.carol, 'carol');
  await until('polling', () => carol.status === 'polling');
  equal(carol.statuses.filter((status) => status === 'reconnecting').length, attemptsMax, 'attempts');
  await until('the first poll is held', () => carol.polls !== undefined || carol.pollCount > 0);
  // From the first answer on nothing is missed: publish until it has begun, then count exactly.
  for (let n = 0; list.length === 0; n += 1) {
    await rest(node(n), 'POST', '/publish', { channel: conversation, type: 'message', payload: { begin: n } });
    await new Promise((resolve) => setTimeout(resolve, 50));
    if (n > 200) throw new Error('the first poll heard nothing');
  }
  for (let n = 0; n < 5; n += 1) {
    await rest(node(n), 'POST', '/publish', { channel: conversation, type: 'message', payload: { n } });
  }
  await rest(node(1), 'POST', '/users/carol/messages', { type: 'notification', payload: { id: 'last' } });
  await until('the last', () => list.some((event) => event.payload.id === 'last'));
  await until('all five', () => list.filter((event) => event.payload.n !== undefined).length >= 5);
  equal(list.map((event) => event.payload.n).filter((n) => n !== undefined), [0, 1, 2, 3, 4], 'order');
  carol.wanted = false;
});

await check('socialhub client: disconnects', async () => {
  alice.disconnect();
  bob.disconnect();
  await until('both are gone', () => alice.status === 'disconnected' && bob.status === 'disconnected');
});

finish();
