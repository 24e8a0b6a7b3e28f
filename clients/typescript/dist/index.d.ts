export { openClient } from "./client.js";
export { RollcallError, type Problem } from "./error.js";
export { newKey } from "./key.js";
export { memoryStore } from "./memory.js";
export type * from "./types.js";
