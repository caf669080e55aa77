if [ "$1" = 0 ] && [ -d /run/systemd/system ]; then
    systemctl disable --now eps-actor-server.service eps-actor-client.service || :
fi
