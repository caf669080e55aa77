# Nothing is enabled or started: a server wants to be chosen, a client wants to be invited.
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
    if [ "$1" -gt 1 ]; then
        systemctl try-restart eps-actor-server.service eps-actor-client.service || :
    fi
fi
