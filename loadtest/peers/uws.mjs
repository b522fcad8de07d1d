// uWebSockets as Bun has it, with its own topics: bun uws.mjs PORT
// /ws?channel=X listens, text frames "CHANNEL\nPAYLOAD" on /pub publish. One process, no Redis, no history.
const server = Bun.serve({
  port: Number(process.argv[2]),
  hostname: "127.0.0.1",
  fetch(request, server) {
    const { pathname, searchParams } = new URL(request.url);
    const channel = pathname === "/pub" ? null : (searchParams.get("channel") ?? "");
    if (!server.upgrade(request, { data: { channel } })) {
      return new Response("a WebSocket is expected", { status: 426 });
    }
  },
  websocket: {
    idleTimeout: 0,
    open(socket) {
      if (socket.data.channel !== null) socket.subscribe(socket.data.channel);
    },
    message(socket, text) {
      if (socket.data.channel !== null) return;
      const at = text.indexOf("\n");
      server.publish(text.slice(0, at), text.slice(at + 1));
    },
  },
});
