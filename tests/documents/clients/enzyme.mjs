// Clients as the enzyme document shows their use: a WebSocket client with states and backoff, an event stream client,
// channel subscriptions whose handlers get the payload, and cache strategies. Times are a hundredth.
import { EventSource } from 'eventsource';
import WebSocket from 'ws';
import { check, equal, finish, node, rest, tokens, until } from './checks.mjs';

function createWebSocketClient(url, options) {
  const listeners = { state: [], message: [], error: [] };
  let socket;
  let attempts = 0;
  let wanted = false;
  const channels = new Map();
  const say = (state) => listeners.state.forEach((listener) => listener(state));
  const write = (message) => socket.readyState === WebSocket.OPEN && socket.send(JSON.stringify(message));
  const client = {
    delays: [],
    connect() {
      wanted = true;
      say(attempts ? 'reconnecting' : 'connecting');
      socket = new WebSocket(url(attempts));
      socket.on('open', () => {
        attempts = 0;
        channels.forEach((_, channel) => write({ type: 'subscribe', channel }));
        say('connected');
      });
      socket.on('message', (data) => {
        const message = JSON.parse(data.toString());
        listeners.message.forEach((listener) => listener(message));
        if (message.type === 'subscribed' || message.type === 'presence') return;
        [...(channels.get(message.channel) ?? [])].forEach((handler) => handler(message.payload));
      });
      socket.on('error', (error) => listeners.error.forEach((listener) => listener(error)));
      socket.on('close', () => {
        if (!wanted || attempts >= options.maxReconnectAttempts) return say('disconnected');
        const delay = Math.min(options.reconnectInterval * 1.5 ** attempts, 300);
        client.delays.push(delay);
        attempts += 1;
        setTimeout(() => wanted && client.connect(), delay);
      });
    },
    disconnect() {
      wanted = false;
      socket.close();
    },
    cut: () => socket.terminate(),
    onStateChange: (listener) => listeners.state.push(listener),
    onMessage: (listener) => listeners.message.push(listener),
    onError: (listener) => listeners.error.push(listener),
    subscribe(channel, handler) {
      if (!channels.has(channel)) channels.set(channel, new Set());
      channels.get(channel).add(handler);
      write({ type: 'subscribe', channel });
      return () => {
        channels.get(channel).delete(handler);
        if (channels.get(channel).size > 0) return;
        channels.delete(channel);
        write({ type: 'unsubscribe', channel });
      };
    },
    send: (channel, data) => write({ type: 'message', channel, payload: data }),
  };
  return client;
}

function createSSEClient(url) {
  const source = new EventSource(url);
  return {
    on: (type, handler) => source.addEventListener(type, (event) => handler(JSON.parse(event.data))),
    close: () => source.close(),
    source,
  };
}

const options = { reconnectInterval: 30, maxReconnectAttempts: 10 };
const address = (path, user, offset) => (attempt) =>
  `${node(attempt + offset).replace('http', 'ws')}${path}?token=${tokens[user]}`;
const alice = createWebSocketClient(address('/ws', 'alice', 0), options);
const bob = createWebSocketClient(address('/ws/dashboard', 'bob', 1), options);
const states = [];
const replies = [];
alice.onStateChange((state) => states.push(state));
alice.onMessage((message) => replies.push(message));
const replied = (type, channel) =>
  replies.filter((message) => message.type === type && message.channel === channel).length;
const room = `chat.${process.pid}`;
const subscribed = [];
bob.onMessage((message) => message.type === 'subscribed' && subscribed.push(message.channel));

await check('enzyme client: connects through its states', async () => {
  alice.connect();
  bob.connect();
  await until('connected', () => states.includes('connected'));
  equal(states, ['connecting', 'connected'], 'states');
  await until('welcomed', () => replies.some((message) => message.type === 'connect'));
});

const chat = { alice: [], bob: [] };
let leave;
await check('enzyme client: a chat room through send and subscribe', async () => {
  leave = alice.subscribe(room, (event) => chat.alice.push(event));
  bob.subscribe(room, (event) => chat.bob.push(event));
  await until('both listen', () => replied('subscribed', room) === 1 && subscribed.includes(room));
  alice.send(room, { type: 'message', data: { text: 'hi', userId: 'alice', timestamp: 1 } });
  bob.send(room, { type: 'typing', userId: 'bob' });
  await until('both heard both', () => chat.alice.length === 2 && chat.bob.length === 2);
  equal(chat.bob.map((event) => event.type).sort(), ['message', 'typing'], 'types');
});

await check('enzyme client: one to one', async () => {
  const mine = [];
  alice.subscribe('user.alice.messages', (message) => mine.push(message.text));
  await until('it listens', () => replied('subscribed', 'user.alice.messages') === 1);
  bob.send('user.alice.messages', { text: 'psst', from: 'bob', timestamp: 2 });
  await until('the message', () => mine.length === 1);
  equal(mine, ['psst'], 'text');
});

await check('enzyme client: presence by announcements', async () => {
  let online = [];
  const stop = alice.subscribe('presence', (data) => {
    if (data.type === 'join') online = [...online, data.userId];
    else if (data.type === 'leave') online = online.filter((id) => id !== data.userId);
  });
  await until('it listens', () => replied('subscribed', 'presence') === 1);
  bob.send('presence', { type: 'join', userId: 'bob' });
  await until('bob is there', () => online.includes('bob'));
  bob.send('presence', { type: 'leave', userId: 'bob' });
  await until('bob is gone', () => !online.includes('bob'));
  stop();
});

await check('enzyme client: live figures and a document', async () => {
  let figures = { revenue: 0, users: 0 };
  const edits = [];
  alice.subscribe('dashboard.metrics', (data) => { figures = { ...figures, ...data }; });
  alice.subscribe(`document.${process.pid}`, (event) => edits.push(event.type));
  await until('it listens', () => replied('subscribed', `document.${process.pid}`) === 1
    && replied('subscribed', 'dashboard.metrics') === 1);
  await rest(node(2), 'POST', '/publish', { channel: 'dashboard.metrics', type: 'message', payload: { users: 7 } });
  bob.send(`document.${process.pid}`, { type: 'content-change', content: 'x', userId: 'bob' });
  bob.send(`document.${process.pid}`, { type: 'cursor-move', position: 1, userId: 'bob' });
  await until('both', () => figures.users === 7 && edits.length === 2);
  equal(figures, { revenue: 0, users: 7 }, 'figures');
});

await check('enzyme client: cache strategies by entity', async () => {
  const caches = { users: [{ id: '1', name: 'old' }], messages: [], posts: [{ id: '9' }] };
  alice.subscribe('entity:user', (data) => {
    caches.users = caches.users.map((user) => (user.id === data.id ? { ...user, ...data } : user));
  });
  alice.subscribe('entity:message', (data) => caches.messages.push(data));
  alice.subscribe('entity:post', (data) => { caches.posts = caches.posts.filter((post) => post.id !== data.id); });
  await until('it listens', () => ['user', 'message', 'post'].every((name) => replied('subscribed', `entity:${name}`)));
  await rest(node(0), 'POST', '/entities/user/1/events', { action: 'updated', data: { id: '1', name: 'new' } });
  await rest(node(1), 'POST', '/entities/message/5/events', { action: 'created', data: { id: '5' } });
  await rest(node(2), 'POST', '/entities/post/9/events', { action: 'deleted' });
  await until('all three', () => caches.users[0].name === 'new' && caches.messages.length && !caches.posts.length);
});

await check('enzyme client: cut off, it reconnects by itself and hears on', async () => {
  alice.cut();
  await until('reconnected', () => states.slice(2).join() === 'reconnecting,connected');
  equal(alice.delays[0], 30, 'first delay');
  await until('it listens again', () => replied('subscribed', room) === 2);
  const before = chat.alice.length;
  bob.send(room, { type: 'message', data: { text: 'again' } });
  await until('the message', () => chat.alice.length === before + 1);
  leave();
  await until('it left', () => replied('unsubscribed', room) === 1);
});

await check('enzyme client: delays grow by half and end after the attempts', async () => {
  const lost = createWebSocketClient(() => 'ws://127.0.0.1:9/ws', { ...options, maxReconnectAttempts: 4 });
  const seen = [];
  lost.onStateChange((state) => seen.push(state));
  lost.onError(() => {});
  lost.connect();
  await until('it gave up', () => seen.at(-1) === 'disconnected');
  equal(lost.delays, [30, 45, 67.5, 101.25], 'delays');
});

await check('enzyme client: an event stream with named events', async () => {
  const stream = createSSEClient(`${node(1)}/events?token=${tokens.carol}`);
  const heard = [];
  let open = false;
  stream.on('connected', () => { open = true; });
  stream.on('update', (data) => heard.push(['update', data.n]));
  stream.on('notification', (data) => heard.push(['notification', data.message]));
  await until('it is open', () => open);
  await rest(node(0), 'POST', '/events', { event: 'update', data: '{"n":1}', user_id: 'carol' });
  await rest(node(2), 'POST', '/users/carol/messages', { type: 'notification', payload: { message: 'hi' } });
  await until('both', () => heard.length === 2);
  equal(heard.sort(), [['notification', 'hi'], ['update', 1]], 'events');
  stream.close();
});

alice.disconnect();
bob.disconnect();
finish();
