const PORT = 9229;
const OPEN_MS = 5_000;

/**
 * Makes a Node process collect all garbage, through its inspector, and tells the bytes of its heap that live on.
 * Without this, memory says when the collector last ran and nothing about leaks. Rejects when the port is somebody else's.
 */
export async function collectGarbage(pid: number): Promise<number> {
  process.kill(pid, "SIGUSR1");
  const socket = await connect();
  let last = 0;
  const waiting = new Map<number, (result: unknown) => void>();
  socket.onmessage = ({ data }) => {
    const { id, result } = JSON.parse(String(data)) as { id?: number; result: unknown };
    if (id !== undefined) waiting.get(id)?.(result);
  };
  const ask = (method: string, params: object = {}) =>
    new Promise<unknown>((resolve) => {
      waiting.set(++last, resolve);
      socket.send(JSON.stringify({ id: last, method, params }));
    });
  const evaluate = (expression: string) =>
    ask("Runtime.evaluate", { expression }) as Promise<{ readonly result: { readonly value: unknown } }>;
  try {
    const answer = (await evaluate("process.pid")).result.value;
    if (answer !== pid) throw new Error(`port ${PORT} belongs to process ${answer}, not to ${pid}`);
    // The second one takes what finalizers of the first let go.
    await ask("HeapProfiler.collectGarbage");
    await ask("HeapProfiler.collectGarbage");
    const { usedSize, backingStorageSize } = (await ask("Runtime.getHeapUsage")) as {
      readonly usedSize: number;
      readonly backingStorageSize: number;
    };
    return usedSize + backingStorageSize;
  } finally {
    // Frees the port for the next process; the connection ends with it.
    socket.send(JSON.stringify({ id: 0, method: "Runtime.evaluate", params: { expression: "process._debugEnd()" } }));
    await new Promise((resolve) => socket.addEventListener("close", resolve, { once: true }));
  }
}

async function connect(): Promise<WebSocket> {
  const endMs = performance.now() + OPEN_MS;
  for (;;) {
    try {
      const list = await (await fetch(`http://127.0.0.1:${PORT}/json/list`)).json();
      const socket = new WebSocket((list as { webSocketDebuggerUrl: string }[])[0]!.webSocketDebuggerUrl);
      await new Promise((resolve, reject) => {
        socket.onopen = resolve;
        socket.onerror = reject;
      });
      return socket;
    } catch (error) {
      if (performance.now() > endMs) throw new Error("the inspector of a process did not open", { cause: error });
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}
