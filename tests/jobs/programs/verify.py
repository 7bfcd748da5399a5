from programs.tiny import main

main()
