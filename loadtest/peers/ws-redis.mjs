// What most people write first in Node: `ws` and Redis pub/sub. node ws-redis.mjs PORT REDIS_URL
// /ws?channel=X listens, text frames "CHANNEL\nPAYLOAD" on /pub publish. No history.
import { createServer } from "node:http";
import { Redis } from "ioredis";
import { WebSocketServer } from "ws";

const [port, url] = process.argv.slice(2);
const publisher = new Redis(url);
const subscriber = publisher.duplicate();
const channels = new Map();

subscriber.on("message", (channel, payload) => {
  for (const socket of channels.get(channel) ?? []) socket.send(payload);
});

function listen(socket, channel) {
  let members = channels.get(channel);
  if (!members) {
    channels.set(channel, (members = new Set()));
    subscriber.subscribe(channel);
  }
  members.add(socket);
  socket.on("close", () => {
    members.delete(socket);
    if (members.size === 0 && channels.get(channel) === members) {
      channels.delete(channel);
      subscriber.unsubscribe(channel);
    }
  });
}

const http = createServer();
const server = new WebSocketServer({ server: http });
server.on("connection", (socket, request) => {
  socket.on("error", () => socket.terminate());
  const { pathname, searchParams } = new URL(request.url, "http://localhost");
  if (pathname !== "/pub") return listen(socket, searchParams.get("channel") ?? "");
  socket.on("message", (data) => {
    const text = data.toString();
    const at = text.indexOf("\n");
    publisher.publish(text.slice(0, at), text.slice(at + 1));
  });
});

http.listen({ port: Number(port), host: "127.0.0.1", backlog: 4096 });
