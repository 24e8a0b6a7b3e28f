// The connector is what the SDK takes for one.
import type { PowerSyncBackendConnector } from "@powersync/common";
import { rollcallConnector } from "../src/connector.js";

export const connector: PowerSyncBackendConnector = rollcallConnector({ url: "http://127.0.0.1:7878", token: async () => "token" });
