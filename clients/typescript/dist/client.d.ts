import type { Client, ClientOptions, Tables } from "./types.js";
/** Opens the device's copy of the tables. It needs no network. */
export declare function openClient<const T extends Tables>(options: ClientOptions<T>): Promise<Client<T>>;
