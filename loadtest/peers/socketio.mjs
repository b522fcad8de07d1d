// Socket.IO as its guide writes it: node socketio.mjs PORT [REDIS_URL]
// The room to join is in the query; the event `publish(room, payload)` sends to a room. No history: Socket.IO
// keeps none with this adapter.
import { createServer } from "node:http";
import { createAdapter } from "@socket.io/redis-adapter";
import { Redis } from "ioredis";
import { Server } from "socket.io";

const [port, redis] = process.argv.slice(2);
const http = createServer();
const io = new Server(http, { transports: ["websocket"] });
if (redis) {
  const publisher = new Redis(redis);
  io.adapter(createAdapter(publisher, publisher.duplicate()));
}

io.on("connection", (socket) => {
  const { channel } = socket.handshake.query;
  if (channel) socket.join(channel);
  socket.on("publish", (room, payload) => io.to(room).emit("message", payload));
});

http.listen({ port: Number(port), host: "127.0.0.1", backlog: 4096 });
