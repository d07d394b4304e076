/** Write Toru plugins for Node: `serve` runs one, `index.d.ts` says what it takes. */

export { KvError } from "./lib/context.js";
export { MetadataError } from "./lib/metadata.js";
export { serve } from "./lib/serve.js";
