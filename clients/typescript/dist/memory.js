let stores = 0;
export function memoryStore(name = `memory-${++stores}`) {
    let rows = new Map();
    let meta = new Map();
    let queue = Promise.resolve();
    const begin = (undo) => {
        const set = (map, key, value) => {
            const was = map.get(key);
            undo.push(() => (was === undefined ? map.delete(key) : map.set(key, was)));
            if (value === undefined)
                map.delete(key);
            else
                map.set(key, value);
        };
        const table = (name) => rows.get(name) ?? rows.set(name, new Map()).get(name);
        const read = (text) => JSON.parse(text);
        const by = (a, b) => (a.key < b.key ? -1 : 1);
        return {
            get: async (name, key) => {
                const text = table(name).get(key);
                return text === undefined ? undefined : read(text);
            },
            all: async (name) => [...table(name).values()].map(read).sort(by),
            waiting: async () => [...rows.values()].flatMap((all) => [...all.values()].filter((text) => text.startsWith('{"waits"')).map(read).sort(by)),
            put: async ({ waits, ...row }) => set(table(row.table), row.key, JSON.stringify(waits ? { waits, ...row } : row)),
            delete: async (name, key) => set(table(name), key, undefined),
            meta: async (key) => {
                const text = meta.get(key);
                return text === undefined ? undefined : JSON.parse(text);
            },
            setMeta: async (key, value) => set(meta, key, value === undefined ? undefined : JSON.stringify(value)),
        };
    };
    return {
        name,
        shared: "nobody",
        transact: (_mode, work) => {
            const turn = queue.then(async () => {
                const undo = [];
                try {
                    return await work(begin(undo));
                }
                catch (error) {
                    while (undo.length)
                        undo.pop()();
                    throw error;
                }
            });
            queue = turn.catch(() => { });
            return turn;
        },
        wipe: async () => {
            await queue;
            rows = new Map();
            meta = new Map();
        },
        close: async () => { },
    };
}
