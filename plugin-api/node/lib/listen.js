/** Where a plugin listens: a socket that is private from its first moment and takes nobody else's place. */

import { lstatSync, mkdirSync, unlinkSync } from "node:fs";
import { connect } from "node:net";

/** `sun_path` has 108 bytes with its final zero; the kernel's own error would be worse, or a path cut short. */
const SOCKET_PATH_BYTES_MAX = 107;
const FALLBACK_DIRECTORY = "/tmp/toru-plugins";

function found(path) {
  return lstatSync(path, { throwIfNoEntry: false });
}

/** The path to listen on: what the core says, or that of a plugin run by hand. Errors: with the reason. */
export function socketPath(id) {
  if (process.env.TORU_PLUGIN_SOCKET) return process.env.TORU_PLUGIN_SOCKET;
  try {
    mkdirSync(FALLBACK_DIRECTORY, { mode: 0o700 });
  } catch (error) {
    if (error.code !== "EEXIST") throw error;
  }
  const directory = found(FALLBACK_DIRECTORY);
  if (!directory?.isDirectory() || directory.uid !== process.geteuid()) {
    throw new Error(`${FALLBACK_DIRECTORY} is not a directory of this user`);
  }
  return `${FALLBACK_DIRECTORY}/${id}.sock`;
}

/** Makes `server` listen at `path`, 0600 from its first moment. Errors: with the reason. */
export async function listen(server, path) {
  if (Buffer.byteLength(path) > SOCKET_PATH_BYTES_MAX) {
    throw new Error(`the path has more than ${SOCKET_PATH_BYTES_MAX} bytes`);
  }
  const before = found(path);
  if (before && !before.isSocket()) throw new Error("something that is no socket is there");
  if (before) await removeStale(path);
  await new Promise((resolve, reject) => {
    server.once("error", reject);
    const umask = process.umask(0o177);
    try {
      // The socket is bound within this call, so that the umask holds for it and for nothing else.
      server.listen({ path, backlog: 1024 }, resolve);
    } finally {
      process.umask(umask);
    }
  });
}

function removeStale(path) {
  return new Promise((resolve, reject) => {
    const probe = connect(path);
    probe.once("connect", () => {
      probe.destroy();
      reject(new Error("another process is listening there"));
    });
    probe.once("error", (error) => {
      if (error.code === "ECONNREFUSED") unlinkSync(path);
      if (error.code === "ECONNREFUSED" || error.code === "ENOENT") resolve();
      else reject(error);
    });
  });
}
