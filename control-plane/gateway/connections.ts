import { maxHeaderSize } from "node:http";
import { MargayError } from "#protocol/errors.ts";
import { errorBody } from "./http-errors.ts";

/** A connection whose bytes are no HTTP, are too many before the body, or came too slowly. */
export function refuseConnection(
  fault: { readonly code?: string },
  socket: { readonly writable: boolean; end(text: string): unknown; destroy(): unknown },
): void {
  if (!socket.writable) return void socket.destroy();
  const sentence =
    fault.code === "HPE_HEADER_OVERFLOW"
      ? `The address and headers of a request must be at most ${maxHeaderSize} bytes.`
      : "The HTTP request is malformed or came too slowly.";
  const body = JSON.stringify(errorBody(new MargayError("invalid_request", sentence)));
  socket.end(
    `HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
  );
}

/** Why nothing listens, and which setting helps. */
export function listenFailure(error: unknown, host: string, port: number): Error {
  const { code } = error as { readonly code?: unknown };
  const place = `${host}:${port}`;
  if (code === "EADDRINUSE")
    return new Error(`Port ${port} of ${host} is in use; set MARGAY_PORT to another one.`, { cause: error });
  if (code === "EACCES")
    return new Error(`No permission to listen on ${place}; set MARGAY_PORT to 1024 or above.`, { cause: error });
  if (code === "EADDRNOTAVAIL" || code === "ENOTFOUND") {
    return new Error(`${host} is no address of this machine; set MARGAY_HOST.`, { cause: error });
  }
  return new Error(`Cannot listen on ${place}: ${(error as Error).message}`, { cause: error });
}
