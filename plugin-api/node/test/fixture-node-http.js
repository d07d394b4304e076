/** A listener of node:http without a framework. */

import { serve } from "../index.js";
import { fromListener } from "../node-http.js";

let closed = 0;

const listener = (request, response) => {
  const path = request.url.split("?")[0];
  if (path === "/request") {
    const pieces = [];
    request.on("data", (piece) => pieces.push(piece));
    request.on("end", () => {
      const { method, url, headers, rawHeaders } = request;
      const { remoteAddress, remotePort } = request.socket;
      response.setHeader("content-type", "application/json");
      response.end(
        JSON.stringify({
          method, url, headers, rawHeaders, remoteAddress, remotePort,
          body: String(Buffer.concat(pieces)), id: request.toru.pluginId,
        }),
      );
    });
  } else if (path === "/head") {
    response.setHeader("set-cookie", ["a=1", "b=2"]);
    response.writeHead(201, "Made", { "X-One": "1" });
    response.write("one ");
    response.end(Buffer.from("two"));
  } else if (path === "/raw") {
    response.writeHead(200, ["a", "1", "a", "2"]);
    response.end();
  } else if (path === "/none") {
    response.statusCode = 304;
    response.end();
  } else if (path === "/throws") {
    throw new Error("the reason");
  } else if (path === "/hang") {
    response.on("close", () => (closed += 1));
  } else if (path === "/closed") {
    response.end(String(closed));
  }
};

serve({ id: "fixture", name: "Fixture", version: "1.0.0", fetch: fromListener(listener) });
