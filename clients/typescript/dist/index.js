export { openClient } from "./client.js";
export { RollcallError } from "./error.js";
export { newKey } from "./key.js";
export { memoryStore } from "./memory.js";
