"""The path of a drop through the running daemon: intake, live jobs, group commits, publishing, the control facade."""
