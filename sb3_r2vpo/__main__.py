from sb3_r2vpo.zoo.cli import main

if __name__ == "__main__":
    main()
