// Package stream is how NATS JetStream carries guestflow's contract, which is package events.
//
//   - Connect makes the connection, which lives through every outage of NATS; Conn.Provision the streams and consumers,
//     and Conn.Watch looks after them.
//   - Conn.Consume hands each request to a handler, keeps it from others meanwhile, and answers the message with the
//     handler's verdict. RequestQueue shows what else waits for a VM.
//   - Journal reads and appends to the history of a VM: the events stream, with a comparison on each append.
//   - Conn.Reject keeps a refused message as a dead letter and tells its publisher.
//   - Conn.Troubles says what on NATS's side keeps requests from being taken, and the cure.
//
// NATS is asked again until it answers: errors are for what will not pass. See docs/develop/ARCHITECTURE.md for what
// must stay true of all this.
package stream
