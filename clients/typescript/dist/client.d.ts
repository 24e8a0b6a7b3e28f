import type { Client, ClientOptions, Tables } from "./types.js";
/** Opens the device's own copy of the tables. Needs no network. */
export declare function openClient<const T extends Tables>(options: ClientOptions<T>): Promise<Client<T>>;
