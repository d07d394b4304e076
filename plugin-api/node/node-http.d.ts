import type { IncomingMessage, ServerResponse } from "node:http";
import type { Context } from "./index.js";

/**
 * A listener of `node:http`, as Express, Koa's `app.callback()` and Connect are, as a `fetch` for `serve`.
 * `request.toru` is the plugin's context. The answer is sent whole, when the listener ends it.
 */
export function fromListener(
  listener: (request: IncomingMessage, response: ServerResponse) => unknown,
): (request: Request, ctx: Context) => Promise<Response>;
